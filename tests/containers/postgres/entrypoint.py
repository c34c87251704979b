"""Make a cluster where there is none, and become the server; the arguments are its own, after the word `postgres`."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

_HOST_RULE = "host all all all scram-sha-256\n"


def main() -> None:
    """Never returns."""
    data = Path(os.environ["PGDATA"])
    if not (data / "PG_VERSION").exists():
        _make_cluster(data, os.environ.get("POSTGRES_USER", "postgres"), os.environ["POSTGRES_PASSWORD"])
    arguments = sys.argv[2:] if sys.argv[1:2] == ["postgres"] else sys.argv[1:]
    os.execvp("postgres", ["postgres", "-D", str(data), "-c", "listen_addresses=*", "-k", "/tmp", *arguments])  # noqa: S606


def _make_cluster(data: Path, user: str, password: str) -> None:
    with tempfile.NamedTemporaryFile("w") as file:
        file.write(password)
        file.flush()
        subprocess.run(
            [
                *("initdb", "--pgdata", str(data), "--username", user, "--pwfile", file.name),
                *("--auth-local=trust", "--auth-host=scram-sha-256", "--encoding=UTF8", "--locale=C.UTF-8"),
            ],
            check=True,
        )
    with (data / "pg_hba.conf").open("a") as rules:
        rules.write(_HOST_RULE)


if __name__ == "__main__":
    main()
