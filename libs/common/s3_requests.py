"""Requests for one object of a bucket: signed, sent, and tried again.

boto3's way from a call to the connection costs several times the CPU time of the request itself, and a run makes such
requests. The signature and the connections below it are botocore's own: trust, proxies and time are treated alike.
"""

import os
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from urllib.parse import quote, urlsplit

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


@dataclass(frozen=True, slots=True)
class PresignedRequest:
    """A request that needs no credentials until it expires. It is to be sent with just these headers, and its URL kept
    secret: it lets whoever has it do this one thing.
    """

    method: str
    url: str = field(repr=False)
    headers: Mapping[str, str]


class ObjectRequests:
    """Sends requests for objects of one bucket, by path-style URLs. Thread-safe.

    Proxies and trusted certificates are those of boto3: HTTPS_PROXY, NO_PROXY, AWS_CA_BUNDLE.
    """

    def __init__(self, settings: ServiceSettings, clock: ServerClock, *, connections: int) -> None:
        endpoint = settings.s3_endpoint.rstrip("/")
        self._place = f"{endpoint}/{settings.s3_bucket}"
        self._clock = clock
        self._credentials = Credentials(
            settings.s3_access_key.get_secret_value(), settings.s3_secret_key.get_secret_value()
        )
        self._region = settings.s3_region
        self._signer = clock.signer(self._credentials, self._region)
        self._session = _session(endpoint, connections)

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

        def signed() -> AWSRequest:
            request = AWSRequest(method, self._url(key), dict(headers or {}), body, stream_output=stream)
            self._clock.sign(self._signer, request)
            return request

        return _send(self._session, signed, method, learn=self._clock.learn)

    def presign(
        self,
        method: str,
        key: str,
        *,
        headers: Mapping[str, str] | None = None,
        query: Mapping[str, str] | None = None,
        expires_seconds: int,
    ) -> PresignedRequest:
        """A request that somebody else may send, with these headers."""
        request = AWSRequest(method, self._url(key), dict(headers or {}), params=dict(query or {}))
        self._clock.sign(
            self._clock.presigner(self._credentials, self._region, expires_seconds=expires_seconds), request
        )
        return PresignedRequest(method, str(request.url), dict(headers or {}))

    def _url(self, key: str) -> str:
        return f"{self._place}/{quote(key, safe='/~')}"


class PresignedRequests:
    """Sends requests that somebody else has signed, over connections like those of ObjectRequests. Thread-safe."""

    def __init__(self, *, connections: int) -> None:
        self._connections = connections
        self._sessions: dict[str, URLLib3Session] = {}

    def close(self) -> None:
        """Close the connections."""
        for session in self._sessions.values():
            session.close()

    def send(self, presigned: PresignedRequest, *, body: bytes | None = None, stream: bool = False) -> AWSResponse:
        """The answer, and the errors, of `ObjectRequests.send`."""
        found = urlsplit(presigned.url)
        place = f"{found.scheme}://{found.netloc}"
        session = self._sessions.setdefault(place, _session(place, self._connections))
        return _send(
            session,
            lambda: AWSRequest(presigned.method, presigned.url, dict(presigned.headers), body, stream_output=stream),
            presigned.method,
            learn=lambda _status, _headers: False,
        )


def _session(endpoint: str, connections: int) -> URLLib3Session:
    return URLLib3Session(
        verify=os.environ.get("AWS_CA_BUNDLE") or True,  # type: ignore[arg-type]  # the stubs know no path
        proxies=get_environ_proxies(endpoint),
        timeout=(CONNECT_SECONDS, READ_SECONDS),  # type: ignore[arg-type]  # the stubs know no pair
        max_pool_connections=connections,
    )


def _send(
    session: URLLib3Session,
    make: Callable[[], AWSRequest],
    method: str,
    *,
    learn: Callable[[int, Mapping[str, str]], bool],
) -> AWSResponse:
    """Send what `make` returns until the answer is no error that passes; `learn` may want another try at once."""
    for attempt in range(1, ATTEMPTS + 1):
        request = make()
        try:
            answer = session.send(request.prepare())
        except BotoCoreError:
            if attempt == ATTEMPTS:
                raise
        else:
            if answer.status_code < HTTPStatus.MULTIPLE_CHOICES:
                return answer
            content = answer.content  # reads it, so that the connection can be used again
            if attempt == ATTEMPTS:
                raise _refusal(answer.status_code, content, method)
            if learn(answer.status_code, answer.headers):
                continue
            if answer.status_code not in _PASSING:
                raise _refusal(answer.status_code, content, method)
        time.sleep(_FIRST_PAUSE_SECONDS * 2 ** (attempt - 1))
    raise AssertionError("the last attempt returns or raises")


def _refusal(status: int, content: bytes, method: str) -> ClientError:
    found = _CODE.search(content)
    code = found.group(1).decode("utf-8", "replace") if found else str(status)
    return ClientError({"Error": {"Code": code}, "ResponseMetadata": {"HTTPStatusCode": status}}, method)  # type: ignore[typeddict-item]
