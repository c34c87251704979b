"""Removing what uploads leave behind when the registry is killed in the middle of one."""

import asyncio
import time
from collections.abc import Callable

from libs.common.errors import StowageError
from libs.common.log import get_logger
from libs.common.objects import ObjectStore
from services.registry.incoming import UPLOADS

_ID_TIME_DIGITS = 12

_log = get_logger("registry")


def sweep(objects: ObjectStore, *, max_age_seconds: float) -> int:
    """Remove uploads older than that, finished or not; how many there were. Blocks.

    Only keys that an upload of ours has are looked at: their age is in them.
    """
    stale = _older_than(max_age_seconds)
    swept = objects.abort_uploads(UPLOADS, stale=stale)
    for key in objects.list(UPLOADS):
        if stale(key):
            objects.delete(key)
            swept += 1
    return swept


def count_stale(objects: ObjectStore, *, max_age_seconds: float) -> int:
    """How many uploads `sweep` would remove. Blocks."""
    stale = _older_than(max_age_seconds)
    return sum(map(stale, objects.uploads_in_flight(UPLOADS))) + sum(map(stale, objects.list(UPLOADS)))


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


def _older_than(max_age_seconds: float) -> Callable[[str], bool]:
    oldest_ms = (time.time() - max_age_seconds) * 1000

    def stale(key: str) -> bool:
        began_ms = _began_ms(key)
        return began_ms is not None and began_ms < oldest_ms

    return stale


def _began_ms(key: str) -> int | None:
    """When the upload began, in milliseconds of Unix time, or None where the key is not one of ours."""
    digits = key.removeprefix(f"{UPLOADS}upl_")[:_ID_TIME_DIGITS]
    try:
        return int(digits, 16) if key.startswith(f"{UPLOADS}upl_") and len(digits) == _ID_TIME_DIGITS else None
    except ValueError:
        return None
