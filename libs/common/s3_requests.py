"""Requests for one object of a bucket: signed, sent, and tried again.

boto3's way from a call to the connection costs several times the CPU time of the request itself, and a run makes such
requests. The signature and the connections below it are botocore's own: trust, proxies and time are treated alike.
"""

import os
import re
import time
from collections.abc import Mapping
from http import HTTPStatus
from urllib.parse import quote

from botocore.awsrequest import AWSRequest, AWSResponse
from botocore.credentials import Credentials
from botocore.exceptions import BotoCoreError, ClientError
from botocore.httpsession import URLLib3Session
from botocore.utils import get_environ_proxies

from libs.common.s3_clock import ServerClock
from libs.common.settings import ServiceSettings

CONNECT_SECONDS = 3
READ_SECONDS = 30
ATTEMPTS = 3

_PASSING = {
    HTTPStatus.INTERNAL_SERVER_ERROR,
    HTTPStatus.BAD_GATEWAY,
    HTTPStatus.SERVICE_UNAVAILABLE,
    HTTPStatus.GATEWAY_TIMEOUT,
    HTTPStatus.TOO_MANY_REQUESTS,
}
_FIRST_PAUSE_SECONDS = 0.2
_CODE = re.compile(rb"<Code>([^<]{1,100})</Code>")


class ObjectRequests:
    """Sends requests for objects of one bucket, by path-style URLs. Thread-safe.

    Proxies and trusted certificates are those of boto3: HTTPS_PROXY, NO_PROXY, AWS_CA_BUNDLE.
    """

    def __init__(self, settings: ServiceSettings, clock: ServerClock, *, connections: int) -> None:
        endpoint = settings.s3_endpoint.rstrip("/")
        self._place = f"{endpoint}/{settings.s3_bucket}"
        self._clock = clock
        self._signer = clock.signer(
            Credentials(settings.s3_access_key.get_secret_value(), settings.s3_secret_key.get_secret_value()),
            settings.s3_region,
        )
        self._session = URLLib3Session(
            verify=os.environ.get("AWS_CA_BUNDLE") or True,  # type: ignore[arg-type]  # the stubs know no path
            proxies=get_environ_proxies(endpoint),
            timeout=(CONNECT_SECONDS, READ_SECONDS),  # type: ignore[arg-type]  # the stubs know no pair
            max_pool_connections=connections,
        )

    def close(self) -> None:
        """Close the connections."""
        self._session.close()

    def send(
        self,
        method: str,
        key: str,
        *,
        headers: Mapping[str, str] | None = None,
        body: bytes | None = None,
        stream: bool = False,
    ) -> AWSResponse:
        """The answer to a request, whose body is still to be read with `stream`.

        Raises botocore's ClientError for an answer that is an error, other errors of botocore's where none came.
        """
        url = f"{self._place}/{quote(key, safe='/~')}"
        for attempt in range(1, ATTEMPTS + 1):
            request = AWSRequest(method, url, dict(headers or {}), body, stream_output=stream)
            self._clock.sign(self._signer, request)
            try:
                answer = self._session.send(request.prepare())
            except BotoCoreError:
                if attempt == ATTEMPTS:
                    raise
            else:
                if answer.status_code < HTTPStatus.MULTIPLE_CHOICES:
                    return answer
                content = answer.content  # reads it, so that the connection can be used again
                if attempt == ATTEMPTS:
                    raise _refusal(answer.status_code, content, method)
                if self._clock.learn(answer.status_code, answer.headers):
                    continue
                if answer.status_code not in _PASSING:
                    raise _refusal(answer.status_code, content, method)
            time.sleep(_FIRST_PAUSE_SECONDS * 2 ** (attempt - 1))
        raise AssertionError("the last attempt returns or raises")


def _refusal(status: int, content: bytes, method: str) -> ClientError:
    found = _CODE.search(content)
    code = found.group(1).decode("utf-8", "replace") if found else str(status)
    return ClientError({"Error": {"Code": code}, "ResponseMetadata": {"HTTPStatusCode": status}}, method)  # type: ignore[typeddict-item]
