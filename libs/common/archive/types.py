"""The vocabulary of archives: what a member is, what is too much, and what can be wrong.

Users import these names from `libs.common.archive`.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

MIB = 1024 * 1024
GIB = 1024 * MIB

RATIO_FLOOR_BYTES = 16 * MIB
"""The compression ratio is not judged before this many bytes were unpacked: small archives of zeros are harmless."""

MAX_NAME_BYTES = 255
"""Longest name of one path component: NAME_MAX of every Linux file system that matters."""


class ArchiveErrorCode(StrEnum):
    """What is wrong with an archive; stable, for programs."""

    EMPTY = "empty"
    TRUNCATED = "truncated"
    CORRUPT = "corrupt"
    UNSUPPORTED_COMPRESSION = "unsupported_compression"
    WINDOW_TOO_LARGE = "window_too_large"
    TRAILING_DATA = "trailing_data"
    MISSING_END = "missing_end"
    UNSUPPORTED_MEMBER = "unsupported_member"
    UNSAFE_PATH = "unsafe_path"
    UNSAFE_LINK = "unsafe_link"
    DUPLICATE_MEMBER = "duplicate_member"
    NOT_A_DIRECTORY = "not_a_directory"
    TOO_LARGE = "too_large"
    TOO_MANY_ENTRIES = "too_many_entries"
    TOO_MANY_FRAMES = "too_many_frames"
    RATIO = "ratio"


class ArchiveError(Exception):
    """An archive that is refused.

    `str()` is a sentence that names the member, says what was expected and what to do. `member` is the path as far as
    it is known, shortened when it is absurdly long, or None when the fault is not in a member. `limit` is the field of
    ArchiveLimits that it exceeds, if it does.
    """

    def __init__(
        self, code: ArchiveErrorCode, message: str, member: str | None = None, *, limit: str | None = None
    ) -> None:
        super().__init__(message)
        self.code = code
        self.member = member
        self.limit = limit


@dataclass(frozen=True, slots=True)
class ArchiveLimits:
    """Bounds on one archive.

    `max_unpacked_bytes` bounds the tar stream (files, headers and padding). `max_ratio` bounds tar bytes per compressed
    byte once `RATIO_FLOOR_BYTES` were unpacked. `max_entries` counts members and the directories their paths imply.
    `max_path_bytes` bounds one path or link target in UTF-8, `max_path_depth` its components, and
    `max_total_path_bytes` all paths together, because whoever reads an archive has to remember them.
    `max_manifest_bytes` bounds a bundle's `manifest.json`, which is read whole: whoever reads it sees to that.
    """

    max_compressed_bytes: int = 4 * GIB
    max_unpacked_bytes: int = 16 * GIB
    max_entries: int = 200_000
    max_ratio: int = 200
    max_path_bytes: int = 1024
    max_path_depth: int = 64
    max_total_path_bytes: int = 64 * MIB
    max_manifest_bytes: int = 256 * 1024


class EntryType(StrEnum):
    """The kinds of member that a bundle may have."""

    FILE = "file"
    DIRECTORY = "directory"
    SYMLINK = "symlink"
    HARDLINK = "hardlink"


@dataclass(slots=True)
class Entry:
    """One member of an archive.

    `path` is relative and normalised: no leading `./`, no trailing `/`, no empty, `.` or `..` component. `size` is in
    bytes and 0 for all but files. `mode` has permission bits only. `link_target` is None for files and directories, a
    path like `path` for hard links, and the target as written for symbolic links.
    """

    path: str
    type: EntryType
    size: int
    mode: int
    link_target: str | None = None

    @property
    def executable(self) -> bool:
        """Whether the owner may execute it: the one permission that a bundle keeps."""
        return bool(self.mode & 0o100)


class EntrySink(Protocol):
    """Receives the members of an archive in their order.

    `begin` for each member; for files then `data` for each piece and `end` after the last one. A piece may be kept: it
    holds at most about 1 MiB in memory, with others that came in the same go. Members were checked before `begin`. What
    a sink raises passes through the reader.
    """

    def begin(self, entry: Entry) -> None: ...

    def data(self, chunk: memoryview) -> None: ...

    def end(self) -> None: ...


@dataclass(frozen=True, slots=True)
class ArchiveTotals:
    """What a whole archive came to.

    `stream_bytes` is the length of the decompressed tar stream, `unpacked_bytes` the sum of the sizes of its files.
    `entries` counts members as written in the archive. `compression` is `gzip` or `zstd`.
    """

    compressed_bytes: int
    stream_bytes: int
    unpacked_bytes: int
    entries: int
    compression: str


def quoted(name: str) -> str:
    """A member's name as error messages show it: control characters escaped, cut at 200 characters."""
    shown = name if len(name) <= 200 else name[:150] + "…" + name[-49:]
    return shown if shown.isprintable() else repr(shown)[1:-1]
