"""The bytes of a few members of an artifact, out of the bucket: streamed, verified, nothing on disk."""

import hashlib
import threading
from collections.abc import Mapping

from libs.common.archive import ArchiveError, ArchiveLimits, ArchiveReader, Entry, EntryType
from libs.common.errors import Unavailable
from libs.common.object_errors import ObjectMissing
from libs.common.objects import ObjectStore
from services.registry.store.artifacts import Artifact

_ANY = 2**62
# It was bounded when it was published, and has to have that digest.
_UNBOUNDED = ArchiveLimits(max_compressed_bytes=_ANY, max_unpacked_bytes=_ANY, max_entries=_ANY, max_ratio=_ANY)


class Abandoned(Exception):
    """Nobody waits for the members any more."""


class _Collector:
    """An EntrySink that keeps the bytes of the files that are wanted."""

    def __init__(self, wanted: Mapping[str, int]) -> None:
        self.found: dict[str, bytes] = {}
        self._wanted = wanted
        self._path = ""
        self._content: bytearray | None = None

    def begin(self, entry: Entry) -> None:
        if entry.type is EntryType.FILE and self._wanted.get(entry.path) == entry.size:
            self._path, self._content = entry.path, bytearray()

    def data(self, chunk: memoryview) -> None:
        if self._content is not None:
            self._content += chunk

    def end(self) -> None:
        if self._content is not None:
            self.found[self._path] = bytes(self._content)
            self._content = None


def read_members(
    objects: ObjectStore, artifact: Artifact, wanted: Mapping[str, int], abandoned: threading.Event
) -> dict[str, bytes]:
    """The bytes of the files in `wanted`, path to size in bytes. Blocks, and reads the whole artifact.

    Memory holds what is wanted and some MiB. Raises Unavailable where the object is missing or has not the digest that
    it should have, and Abandoned soon after that is set.
    """
    collector = _Collector(wanted)
    reader, hashed = ArchiveReader(collector, _UNBOUNDED), hashlib.sha256()
    try:
        with objects.read(artifact.object_key) as body:
            for chunk in body:
                if abandoned.is_set():
                    raise Abandoned
                hashed.update(chunk)
                reader.feed(chunk)
        reader.finish()
    except (ObjectMissing, ArchiveError):
        raise _damaged(artifact) from None
    if f"sha256:{hashed.hexdigest()}" != artifact.digest or collector.found.keys() != wanted.keys():
        raise _damaged(artifact)
    return collector.found


def _damaged(artifact: Artifact) -> Unavailable:
    return Unavailable(
        f"the object of {artifact.digest} is missing or damaged in the bucket, so its texts can't be compared. Publish "
        "the same bytes again with force=true to repair it, or leave text=true out.",
        kind="artifact-damaged",
        digest=artifact.digest,
    )
