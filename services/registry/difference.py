"""What differs between two artifacts, in short: for conflicts, the audit trail, and the head of a whole difference."""

import asyncio
import dataclasses
from typing import Any

from libs.common.database import Connection
from libs.common.models import Difference
from services.registry.inspection import FileRecord, Inspection, content_members
from services.registry.store import differences
from services.registry.store.artifacts import Artifact, File
from services.registry.store.differences import Summary
from services.registry.store.versions import Revision, Version

_SHOWN_PATHS = 20
_SHOWN_PATHS_IN_EVENTS = 5

_Recorded = Artifact | Version | Revision


async def between(
    connection: Connection, before: _Recorded, after: _Recorded | Inspection, *, shown: int = _SHOWN_PATHS
) -> Difference:
    """What has to be added, removed and changed in `before` to get `after`, both recorded; `shown` paths of each."""
    summary = await differences.summarise(connection, before.digest, after.digest, shown=shown)
    return _difference(summary, before.platforms, after.platforms)


async def with_offered(connection: Connection, existing: Version, offered: Inspection) -> Difference:
    """The same for an artifact that was offered and is not recorded."""
    files = await asyncio.to_thread(_content, offered)
    summary = await differences.summarise_offered(connection, existing.digest, files, shown=_SHOWN_PATHS)
    return _difference(summary, existing.platforms, offered.platforms)


async def difference_for_event(
    connection: Connection, before: _Recorded, after: _Recorded | Inspection
) -> dict[str, Any]:
    """What `between` says with a few paths only, as it stands in the audit trail."""
    found = await between(connection, before, after, shown=_SHOWN_PATHS_IN_EVENTS)
    return found.model_dump(by_alias=True)


def _content(offered: Inspection) -> list[File]:
    return [row_of(record) for record in content_members(offered.files)]


def row_of(record: FileRecord) -> File:
    """A member that was inspected, as it is recorded."""
    return File(record.path, record.type.value, record.size, record.mode, record.digest, record.link_target)


def _difference(summary: Summary, before: list[str], after: list[str]) -> Difference:
    return Difference(
        **dataclasses.asdict(summary),
        platforms_added=sorted(set(after) - set(before)),
        platforms_removed=sorted(set(before) - set(after)),
    )
