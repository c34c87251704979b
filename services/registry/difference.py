"""What differs between two bundles, by file."""

from collections.abc import Iterable

from libs.common.archive import EntryType
from libs.common.models import Difference
from services.registry.inspection import FileRecord
from services.registry.store.artifacts import File

_SHOWN_PATHS = 20

_Signature = tuple[str, int, int, bytes | None, str | None]


def compare(existing: Iterable[File | FileRecord], offered: Iterable[File | FileRecord]) -> Difference:
    """What `offered` adds, removes and changes in `existing`: what counts for the content digest counts here."""
    before, after = _signatures(existing), _signatures(offered)
    added = sorted(after.keys() - before.keys())
    removed = sorted(before.keys() - after.keys())
    changed = sorted(path for path in before.keys() & after.keys() if before[path] != after[path])
    return Difference(
        added=len(added),
        removed=len(removed),
        changed=len(changed),
        added_paths=added[:_SHOWN_PATHS],
        removed_paths=removed[:_SHOWN_PATHS],
        changed_paths=changed[:_SHOWN_PATHS],
    )


def _signatures(files: Iterable[File | FileRecord]) -> dict[str, _Signature]:
    """By path what makes up the content. Directories count only where nothing is in them, hard links as files."""
    files = list(files)
    parents: set[str] = set()
    for file in files:
        parent = file.path.rpartition("/")[0]
        while parent not in parents:
            parents.add(parent)
            parent = parent.rpartition("/")[0]
    return {
        file.path: _signature(file) for file in files if file.type != EntryType.DIRECTORY or file.path not in parents
    }


def _signature(file: File | FileRecord) -> _Signature:
    if file.type == EntryType.HARDLINK:
        return EntryType.FILE, file.size, file.mode, file.digest, None
    return file.type, file.size, file.mode, file.digest, file.link_target
