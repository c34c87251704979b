"""Removing what uploads leave behind when the registry is killed in the middle of one."""

import asyncio
from datetime import UTC, datetime, timedelta

from libs.common.errors import StowageError
from libs.common.log import get_logger
from libs.common.objects import ARTIFACTS, ObjectStore, PendingUpload
from services.registry.incoming import UPLOADS

_ID_TIME_DIGITS = 12

_log = get_logger("registry")


def sweep(objects: ObjectStore, *, max_age_seconds: float) -> int:
    """Remove uploads older than that, finished or not; how many there were. Blocks.

    Only keys that an upload of ours has are looked at: below `uploads/` their age is in them.
    """
    stale = _Stale(max_age_seconds)
    swept = objects.abort_uploads(UPLOADS, stale=lambda upload: stale.by_key(upload.key))
    swept += objects.abort_uploads(ARTIFACTS, stale=stale.by_time)
    for key in objects.list(UPLOADS):
        if stale.by_key(key):
            objects.delete(key)
            swept += 1
    return swept


def count_stale(objects: ObjectStore, *, max_age_seconds: float) -> int:
    """How many uploads `sweep` would remove. Blocks."""
    stale = _Stale(max_age_seconds)
    return (
        sum(stale.by_key(upload.key) for upload in objects.uploads_in_flight(UPLOADS))
        + sum(map(stale.by_time, objects.uploads_in_flight(ARTIFACTS)))
        + sum(map(stale.by_key, objects.list(UPLOADS)))
    )


async def sweep_regularly(objects: ObjectStore, *, max_age_seconds: float, interval_seconds: float) -> None:
    """Sweep now and every so often, for as long as the task runs. A bucket that is away is tried again next time."""
    while True:
        try:
            swept = await asyncio.to_thread(sweep, objects, max_age_seconds=max_age_seconds)
            if swept:
                _log.info("stale_uploads_swept", count=swept)
        except StowageError as error:
            _log.warning("sweep_failed", error=error.message)
        await asyncio.sleep(interval_seconds)


class _Stale:
    """Whether an upload began longer ago than that."""

    def __init__(self, max_age_seconds: float) -> None:
        self._oldest = datetime.now(UTC) - timedelta(seconds=max_age_seconds)

    def by_key(self, key: str) -> bool:
        began_ms = _began_ms(key)
        return began_ms is not None and began_ms < self._oldest.timestamp() * 1000

    def by_time(self, upload: PendingUpload) -> bool:
        return upload.initiated < self._oldest


def _began_ms(key: str) -> int | None:
    """When the upload began, in milliseconds of Unix time, or None where the key is not one of ours."""
    digits = key.removeprefix(f"{UPLOADS}upl_")[:_ID_TIME_DIGITS]
    try:
        return int(digits, 16) if key.startswith(f"{UPLOADS}upl_") and len(digits) == _ID_TIME_DIGITS else None
    except ValueError:
        return None
