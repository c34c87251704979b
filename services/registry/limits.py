"""What one token may upload: at a time, in an hour, in a day. Each replica counts for itself, in memory."""

import math
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from prometheus_client import Counter

from libs.common.auth import Principal
from libs.common.errors import TooManyRequests
from libs.common.rate import Recent
from services.registry.settings import RegistrySettings

_RETRY_SECONDS = 5
_HOUR, _DAY = 3600.0, 86_400.0


@dataclass(frozen=True, slots=True)
class _Quota:
    """So many bytes in a window of time, which begins with the first upload in it."""

    name: str
    setting: str
    max_bytes: int
    seconds: float


@dataclass(slots=True)
class _Use:
    """What a token has used: uploads that go on, and bytes by quota since when."""

    uploads: int = 0
    windows: dict[str, tuple[float, int]] = field(default_factory=dict)


class UploadLimits:
    """Counts the uploads of each token."""

    def __init__(self, settings: RegistrySettings, refusals: Counter) -> None:
        self._max_uploads = settings.token_uploads
        self._uploads_setting = settings.variable("token_uploads")
        self._unlimited = frozenset(settings.unlimited_subjects)
        self._refusals = refusals
        self._used: Recent[_Use] = Recent()
        self._quotas = [
            _Quota(name, settings.variable(setting), max_bytes, seconds)
            for name, setting, max_bytes, seconds in (
                ("an hour", "token_upload_bytes_per_hour", settings.token_upload_bytes_per_hour, _HOUR),
                ("a day", "token_upload_bytes_per_day", settings.token_upload_bytes_per_day, _DAY),
            )
            if max_bytes is not None
        ]

    @contextmanager
    def admitted(self, principal: Principal, announced_bytes: int | None) -> Iterator["Upload"]:
        """Count an upload for as long as the context is open, of as many bytes as its request says, if it does.

        TooManyRequests where it is one too many at a time, or has more bytes than are left to the token.
        """
        use = _Use() if principal.subject in self._unlimited else self._used.get(principal.token_id, _Use())
        if principal.subject not in self._unlimited:
            self._check(principal, use, announced_bytes or 0)
        use.uploads += 1
        try:
            yield Upload(self, principal, use)
        finally:
            use.uploads -= 1

    def charge(self, principal: Principal, use: _Use, received_bytes: int) -> None:
        """Count bytes that came; TooManyRequests where they are more than are left."""
        if principal.subject in self._unlimited:
            return
        self._check_quotas(principal, use, received_bytes)
        now = time.monotonic()
        for quota in self._quotas:
            began, used = use.windows.get(quota.name, (now, 0))
            use.windows[quota.name] = (began, used + received_bytes)

    def _check(self, principal: Principal, use: _Use, announced_bytes: int) -> None:
        if self._max_uploads is not None and use.uploads >= self._max_uploads:
            self._refusals.labels("uploads").inc()
            raise TooManyRequests(
                f"the token of “{principal.subject}” uploads {use.uploads} tarballs just now, which is as many as may "
                f"go at a time ({self._uploads_setting}). Publish this one when another has ended.",
                kind="too-many-uploads",
                retry_after_seconds=_RETRY_SECONDS,
                limit=self._max_uploads,
                setting=self._uploads_setting,
            )
        self._check_quotas(principal, use, announced_bytes)

    def _check_quotas(self, principal: Principal, use: _Use, wanted_bytes: int) -> None:
        now = time.monotonic()
        for quota in self._quotas:
            began, used = use.windows.get(quota.name, (now, 0))
            if now - began >= quota.seconds:
                del use.windows[quota.name]
                began, used = now, 0
            if used + wanted_bytes > quota.max_bytes or used >= quota.max_bytes:
                self._refusals.labels("upload-bytes").inc()
                raise TooManyRequests(
                    f"the token of “{principal.subject}” may upload {quota.max_bytes} bytes in {quota.name} "
                    f"({quota.setting}), and has uploaded {used}: {wanted_bytes} more are too many. Publish later.",
                    kind="upload-quota-exceeded",
                    retry_after_seconds=max(1, math.ceil(began + quota.seconds - now)),
                    limit=quota.max_bytes,
                    used=used,
                    setting=quota.setting,
                )


class Upload:
    """An upload that was admitted."""

    def __init__(self, limits: UploadLimits, principal: Principal, use: _Use) -> None:
        self._limits = limits
        self._principal = principal
        self._use = use

    def charge(self, received_bytes: int) -> None:
        """Count bytes that came; TooManyRequests where they are too many."""
        self._limits.charge(self._principal, self._use, received_bytes)

    async def counted(self, chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        """The chunks, each of which is counted."""
        async for chunk in chunks:
            self.charge(len(chunk))
            yield chunk
