"""Reading a gzip or zstd tarball in one pass, push style, with flat memory and nothing taken on trust.

The registry looks into uploads with it and the runner unpacks with it: one reader with one set of checks, so that what
was published can be unpacked. The checks do not depend on how the bytes are cut into chunks.
"""

from libs.common.archive.compression import FRAME_BYTES, Frame
from libs.common.archive.paths import symlink_fault
from libs.common.archive.reader import ArchiveReader, Decompression
from libs.common.archive.tar import TarParser
from libs.common.archive.types import (
    ArchiveError,
    ArchiveErrorCode,
    ArchiveLimits,
    ArchiveTotals,
    Entry,
    EntrySink,
    EntryType,
    quoted,
)

__all__ = [
    "FRAME_BYTES",
    "ArchiveError",
    "ArchiveErrorCode",
    "ArchiveLimits",
    "ArchiveReader",
    "ArchiveTotals",
    "Decompression",
    "Entry",
    "EntrySink",
    "EntryType",
    "Frame",
    "TarParser",
    "quoted",
    "symlink_fault",
]
