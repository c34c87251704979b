"""Signing requests to S3 by the server's clock.

S3 refuses what was signed more than a quarter of an hour before or after its own time, and a presigned request once its
time is over by S3's own. A clock is that far off after somebody has set it, or where a virtual machine goes on that was
suspended. Each answer says what the time is.
"""

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from botocore.auth import AUTH_TYPE_MAPS, S3SigV4Auth, S3SigV4QueryAuth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

_TOLERANCE = timedelta(seconds=20)  # answers tell seconds, and may have been on their way for some
_MAX_ATTEMPTS = 3
_SIGNATURE = "s3v4-server-clock"
_OFFSET = "stowage_clock_offset"
_SHA256 = "stowage_body_sha256"


class ServerClock:
    """How far the server's clock is ahead of the machine's."""

    def __init__(self) -> None:
        self._ahead = timedelta()

    def sign(self, signer: S3SigV4Auth | S3SigV4QueryAuth, request: AWSRequest, *, sha256: str | None = None) -> None:
        """Sign a request with what `signer` or `presigner` returned.

        `sha256` is that of its body in hex, where it is known.
        """
        request.context[_OFFSET] = self._ahead
        request.context[_SHA256] = sha256
        signer.add_auth(request)

    def learn(self, status: int, headers: Mapping[str, str]) -> bool:
        """Take the time from an answer. Whether the request was refused for it: it is to be tried again at once."""
        if "date" not in headers or "age" in headers:  # the second is from a cache, and old
            return False
        try:
            ahead = parsedate_to_datetime(headers["date"]) - datetime.now(UTC)
        except (ValueError, TypeError):  # it is no date, or says no time zone, as where a proxy adds a second one
            return False
        if abs(ahead - self._ahead) < _TOLERANCE:
            return False
        self._ahead = ahead
        return status == HTTPStatus.FORBIDDEN

    def sign_requests_of(self, client: "S3Client") -> None:
        """Let `client` sign by the server's clock, and try again at once what was refused for the machine's."""
        client.meta.events.register("choose-signer.s3", _choose_signature)  # type: ignore[arg-type]  # what it returns counts
        client.meta.events.register("before-sign.s3", self._tell)
        client.meta.events.register_first("needs-retry.s3", self._retry)  # type: ignore[arg-type]  # the same

    @staticmethod
    def signer(credentials: Credentials, region: str) -> S3SigV4Auth:
        """Signs requests one by one, with `sign`."""
        return _ServerClockAuth(credentials, "s3", region)

    @staticmethod
    def presigner(credentials: Credentials, region: str, *, expires_seconds: int) -> S3SigV4QueryAuth:
        """Signs requests that somebody without credentials is to send until they expire, with `sign`."""
        return _ServerClockQueryAuth(credentials, "s3", region, expires_seconds)

    def _tell(self, request: Any, **_more: Any) -> None:
        request.context[_OFFSET] = self._ahead

    def _retry(self, response: Any, attempts: int, **_more: Any) -> int | None:
        """After how many seconds to try again where the clock was to blame; None leaves it to others to decide."""
        if response is None or attempts >= _MAX_ATTEMPTS:
            return None
        answer, _ = response
        return 0 if self.learn(answer.status_code, answer.headers) else None


def _set_time(request: Any) -> None:
    """Let a request be signed at the time that its context says."""
    now = datetime.now(UTC) + request.context.get(_OFFSET, timedelta())
    request.context["timestamp"] = now.strftime("%Y%m%dT%H%M%SZ")


class _ServerClockAuth(S3SigV4Auth):
    """Signature version 4 in a header, by the server's clock."""

    def _modify_request_before_signing(self, request: Any) -> None:
        _set_time(request)
        super()._modify_request_before_signing(request)  # type: ignore[misc]  # the stubs lack it

    def payload(self, request: Any) -> str:
        """What is signed of the body."""
        return request.context.get(_SHA256) or super().payload(request)


class _ServerClockQueryAuth(S3SigV4QueryAuth):
    """Signature version 4 in the query string, by the server's clock."""

    def _modify_request_before_signing(self, request: Any) -> None:
        _set_time(request)
        super()._modify_request_before_signing(request)  # type: ignore[misc]  # the stubs lack it


AUTH_TYPE_MAPS[_SIGNATURE] = _ServerClockAuth


def _choose_signature(signature_version: str, **_more: Any) -> str | None:
    """Presigned URLs, whose version has a suffix, are left as they are."""
    return _SIGNATURE if signature_version == "s3v4" else None
