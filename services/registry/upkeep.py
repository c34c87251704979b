"""What keeps the bucket clean and whole: regularly beside serving, and as commands with a table for a person."""

import asyncio
import getpass
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

from libs.common.audit import Origin
from libs.common.database import Pool, is_connection_lost, open_pool
from libs.common.errors import StowageError
from libs.common.log import get_logger
from libs.common.objects import ObjectStore
from libs.common.tables import readable_bytes, render_table
from services.registry.collection import Collection, Collector
from services.registry.scrubbing import Report, Scrubber
from services.registry.settings import RegistrySettings
from services.registry.store.collection import Candidate
from services.registry.store.scrubbing import Damaged

_LOOK_SECONDS = 60.0
_CONNECTIONS = 4

_log = get_logger("registry")


async def keep_up(settings: RegistrySettings, pool: Pool, objects: ObjectStore) -> None:
    """Collect and scrub when it is due, for as long as the task runs. What fails is tried again."""
    origin = Origin(actor="registry")
    collector = _collector(settings, pool, objects)
    scrubber = _scrubber(settings, pool, objects, settings.scrub_bytes_per_second)
    while True:
        await asyncio.sleep(min(_LOOK_SECONDS, settings.gc_interval_seconds))
        with _logged("gc_failed"):
            await collector.collect_if_due(origin, interval_seconds=settings.gc_interval_seconds)
        if settings.scrub_interval_seconds is not None:
            with _logged("scrub_failed"):
                await scrubber.scrub_if_due(origin, interval_seconds=settings.scrub_interval_seconds)


@contextmanager
def _logged(event: str) -> Iterator[None]:
    """Log what fails: the next time may do better, and what else is to be done need not wait for that."""
    try:
        yield
    except Exception as error:  # noqa: BLE001  # whatever it is, it is logged
        if isinstance(error, StowageError) or is_connection_lost(error):
            _log.warning(event, error=str(error))
        else:
            _log.exception(event)


async def collect(settings: RegistrySettings, *, dry_run: bool) -> int:
    """The command `gc`: collect now, or say what would be collected; its exit code."""
    async with _backends(settings) as (pool, objects):
        collector = _collector(settings, pool, objects)
        found = await collector.plan() if dry_run else await collector.collect(_by_hand())
    print(_table_of(found, dry_run=dry_run))
    print(f"\npolicy: {settings.retention}; grace {settings.retention.grace_seconds / 3600:g} hours.")
    return 0


async def scrub(settings: RegistrySettings, *, repair: bool, bytes_per_second: float | None) -> int:
    """The command `scrub`: look at every artifact; 0 where all is well then, else 1."""
    async with _backends(settings) as (pool, objects):
        pace = bytes_per_second or settings.scrub_bytes_per_second
        report = await _scrubber(settings, pool, objects, pace).scrub(_by_hand(), repair=repair)
    print(_table_of_scrub(report))
    return 0 if report.clean else 1


def _table_of_scrub(report: Report) -> str:
    totals = report.totals
    rows = [
        ("artifacts read", str(totals.artifacts), readable_bytes(totals.size)),
        ("quarantined now", str(totals.quarantined), ""),
        ("found whole again", str(totals.repaired), ""),
        ("unreadable just now", str(totals.unreadable), ""),
        ("objects without a row", str(totals.unnamed), readable_bytes(totals.unnamed_size)),
        ("of these removed", str(totals.removed), ""),
    ]
    tables = [render_table(("total", "count", "size"), rows)]
    if report.damaged:
        damaged = [(item.digest, ", ".join(item.versions), item.damage, _way_back(item)) for item in report.damaged]
        tables.insert(0, render_table(("quarantined artifact", "of", "because", "way back"), damaged))
    return "\n\n".join(tables)


def _way_back(item: Damaged) -> str:
    return f"the same content is {item.equal_digest}" if item.equal_digest else "publish or rebuild the same content"


def _table_of(found: Collection, *, dry_run: bool) -> str:
    done = "to be collected" if dry_run else "collected"
    listed = [*((candidate, done) for candidate in found.artifacts), *((each, "marked") for each in found.marked)]
    rows = [_row(candidate, state) for candidate, state in listed]
    totals = [
        (f"artifacts {done}", str(len(found.artifacts)), _size(found.artifacts)),
        ("artifacts marked, to be collected after the grace", str(len(found.marked)), _size(found.marked)),
        (f"objects without a row {done}", str(found.unnamed.count), readable_bytes(found.unnamed.size)),
        (f"stale uploads {done}", str(found.uploads), ""),
    ]
    tables = [render_table(("total", "count", "size"), totals)]
    if rows:
        tables.insert(0, render_table(("artifact", "state", "size", "last used", "of"), rows))
    return "\n\n".join(tables)


def _row(candidate: Candidate, state: str) -> tuple[str, ...]:
    used = candidate.last_used_at.date().isoformat() if candidate.last_used_at else "never"
    return candidate.digest, state, readable_bytes(candidate.size), used, ", ".join(candidate.versions)


def _size(candidates: list[Candidate]) -> str:
    return readable_bytes(sum(candidate.size for candidate in candidates))


def _collector(settings: RegistrySettings, pool: Pool, objects: ObjectStore) -> Collector:
    return Collector(pool, objects, settings.retention, upload_max_age_seconds=settings.upload_max_age_seconds)


def _scrubber(settings: RegistrySettings, pool: Pool, objects: ObjectStore, bytes_per_second: float) -> Scrubber:
    return Scrubber(pool, objects, grace_seconds=settings.retention.grace_seconds, bytes_per_second=bytes_per_second)


def _by_hand() -> Origin:
    return Origin(actor=f"command-line:{getpass.getuser()}")


@asynccontextmanager
async def _backends(settings: RegistrySettings) -> AsyncIterator[tuple[Pool, ObjectStore]]:
    objects = await asyncio.to_thread(ObjectStore, settings)
    try:
        url = settings.database_url.get_secret_value()
        async with open_pool(url, size=_CONNECTIONS, application_name="stowage-registry-upkeep") as pool:
            yield pool, objects
    finally:
        objects.close()
