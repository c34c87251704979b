"""Requests for one object of a bucket: signed, sent, and tried again.

boto3's way from a call to the connection costs several times the CPU time of the request itself, and a run makes such
requests. The signature and the connections below it are botocore's own: trust, proxies and time are treated alike.
"""

import base64
import hashlib
import os
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from http import HTTPStatus
from urllib.parse import quote, urlencode, urlsplit

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
_KEPT_BYTES = 8 * 1024 * 1024
_CODE = re.compile(rb"<Code>([^<]{1,100})</Code>")


@dataclass(frozen=True, slots=True)
class PresignedRequest:
    """A request that needs no credentials until it expires. It is to be sent with just these headers, and its URL kept
    secret: it lets whoever has it do this one thing.
    """

    method: str
    url: str = field(repr=False)
    headers: Mapping[str, str]


class Payload:
    """A body of many chunks, whose length and SHA-256 (in hex) are known before it is sent. It is copied nowhere."""

    def __init__(self, chunks: Iterable[bytes], *, size: int, sha256: str) -> None:
        self.size = size
        self.sha256 = sha256
        self._chunks = chunks

    @classmethod
    def of(cls, chunks: Sequence[bytes]) -> "Payload":
        """A body that is in memory."""
        digest = hashlib.sha256()
        for chunk in chunks:
            digest.update(chunk)
        return cls(chunks, size=sum(map(len, chunks)), sha256=digest.hexdigest())

    @property
    def repeatable(self) -> bool:
        """Whether it can be sent once more."""
        return True

    @property
    def checksum(self) -> str:
        """The SHA-256 as S3 wants it."""
        return base64.b64encode(bytes.fromhex(self.sha256)).decode()

    def __iter__(self) -> Iterator[bytes]:
        return iter(self._chunks)


class PassingPayload(Payload):
    """A body whose chunks come while it is sent. It can be sent once more until some 8 MiB of it have come.

    A server that is busy, and a connection that was closed while nobody used it, are noticed by then.
    """

    def __init__(self, chunks: Iterator[bytes], *, size: int, sha256: str) -> None:
        super().__init__(chunks, size=size, sha256=sha256)
        self._coming = chunks
        self._kept: list[bytes] | None = []
        self._kept_bytes = 0

    @property
    def repeatable(self) -> bool:
        """Whether all that has come was kept."""
        return self._kept is not None

    def __iter__(self) -> Iterator[bytes]:
        yield from tuple(self._kept or ())
        while chunk := self._next():
            yield chunk

    def _next(self) -> bytes:
        try:
            chunk = next(self._coming, b"")
        except BaseException:
            self._kept = None  # what was begun is not to be sent at all
            raise
        self._kept_bytes += len(chunk)
        if self._kept is not None and self._kept_bytes <= _KEPT_BYTES:
            self._kept.append(chunk)
        else:
            self._kept = None
        return chunk


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
        self._session = _session(endpoint, connections, CONNECT_SECONDS)
        # While a body is sent the connection has the time limit that it was made with.
        self._sending = _session(endpoint, connections, READ_SECONDS)

    def close(self) -> None:
        """Close the connections."""
        self._session.close()
        self._sending.close()

    def send(
        self,
        method: str,
        key: str,
        *,
        query: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
        body: bytes | Payload | None = None,
        stream: bool = False,
    ) -> AWSResponse:
        """The answer to a request, whose body is still to be read with `stream`.

        Raises botocore's ClientError for an answer that is an error, other errors of botocore's where none came.
        """
        url = self._url(key)
        if query:
            url += f"?{urlencode(query, quote_via=quote)}"
        headers = dict(headers or {})
        if isinstance(body, Payload):
            headers |= {"Content-Length": str(body.size), "x-amz-checksum-sha256": body.checksum}

        def send_once() -> AWSResponse:
            request = AWSRequest(method, url, headers, body, stream_output=stream)
            if isinstance(body, Payload):
                self._clock.sign(self._signer, request, sha256=body.sha256)
                return self._sending.send(request.prepare())
            self._clock.sign(self._signer, request)
            return self._session.send(request.prepare())

        return _persistently(send_once, method, learn=self._clock.learn, is_repeatable=lambda: _is_repeatable(body))

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
        # While a body is sent the connection has the time limit that it was made with.
        session = self._sessions.setdefault(place, _session(place, self._connections, READ_SECONDS))

        def send_once() -> AWSResponse:
            headers = dict(presigned.headers)
            return session.send(
                AWSRequest(presigned.method, presigned.url, headers, body, stream_output=stream).prepare()
            )

        return _persistently(
            send_once, presigned.method, learn=lambda _status, _headers: False, is_repeatable=lambda: True
        )


def _persistently(
    send_once: Callable[[], AWSResponse],
    method: str,
    *,
    learn: Callable[[int, Mapping[str, str]], bool],
    is_repeatable: Callable[[], bool],
) -> AWSResponse:
    """Send until the answer is no error that passes; `learn` is shown answers, and may want another try at once."""
    for attempt in range(1, ATTEMPTS + 1):
        try:
            answer = send_once()
        except BotoCoreError:
            if attempt == ATTEMPTS or not is_repeatable():
                raise
        else:
            if answer.status_code < HTTPStatus.MULTIPLE_CHOICES:
                learn(answer.status_code, answer.headers)
                return answer
            content = answer.content  # reads it, so that the connection can be used again
            is_last = attempt == ATTEMPTS or not is_repeatable()
            if not is_last and learn(answer.status_code, answer.headers):
                continue
            if is_last or answer.status_code not in _PASSING:
                raise _refusal(answer.status_code, content, method)
        time.sleep(_FIRST_PAUSE_SECONDS * 2 ** (attempt - 1))
    raise AssertionError("the last attempt returns or raises")


def _is_repeatable(body: bytes | Payload | None) -> bool:
    return not isinstance(body, Payload) or body.repeatable


def _session(endpoint: str, connections: int, connect_seconds: float) -> URLLib3Session:
    return URLLib3Session(
        verify=os.environ.get("AWS_CA_BUNDLE") or True,  # type: ignore[arg-type]  # the stubs know no path
        proxies=get_environ_proxies(endpoint),
        timeout=(connect_seconds, READ_SECONDS),  # type: ignore[arg-type]  # the stubs know no pair
        max_pool_connections=connections,
    )


def _refusal(status: int, content: bytes, method: str) -> ClientError:
    found = _CODE.search(content)
    code = found.group(1).decode("utf-8", "replace") if found else str(status)
    return ClientError({"Error": {"Code": code}, "ResponseMetadata": {"HTTPStatusCode": status}}, method)  # type: ignore[typeddict-item]
