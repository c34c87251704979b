"""Ask a service in its own container how it is: `python healthcheck.py PORT [PATH]`, which is /livez by default.

Images have neither curl nor a shell that would be needed for it. Ends with 0 where the answer is 200.
"""

import http.client
import sys

_SECONDS = 4


def main(port: str, path: str = "/livez") -> int:
    """0 where the service on `port` of this container answers `path` with 200, else 1 with the reason."""
    connection = http.client.HTTPConnection("127.0.0.1", int(port), timeout=_SECONDS)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
    except (OSError, http.client.HTTPException) as error:
        sys.stderr.write(f"{path} on port {port}: {error}\n")
        return 1
    sys.stdout.write(answer.read().decode("utf-8", "replace"))
    return 0 if answer.status == http.client.OK else 1


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
