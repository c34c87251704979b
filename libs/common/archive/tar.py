"""Parsing a tar stream that is pushed in: ustar and pax (POSIX.1-2008, `pax`) with the GNU extensions for long names
and large numbers (GNU tar manual, "Basic Tar Format").
"""

from __future__ import annotations

import functools
import struct
from collections.abc import Iterator
from typing import Final, NoReturn

from isal import isal_zlib

from libs.common.archive.paths import Namespace
from libs.common.archive.types import (
    MIB,
    ArchiveError,
    ArchiveErrorCode,
    ArchiveLimits,
    Entry,
    EntrySink,
    EntryType,
    quoted,
)

BLOCK = 512
MAX_EXTENSION_BYTES = 1 * MIB
"""Longest extended header: a path fits a thousand times, extended attributes as bsdtar stores them as well."""

_ZEROS: Final = bytes(BLOCK)
_FILE_FLAGS = b"0\x007"
_TYPES: Final = {
    **dict.fromkeys(_FILE_FLAGS, EntryType.FILE),
    ord("1"): EntryType.HARDLINK,
    ord("2"): EntryType.SYMLINK,
    ord("5"): EntryType.DIRECTORY,
}
_EXTENSIONS: Final = b"xgLK"
_REFUSED: Final = {
    ord("3"): "a character device",
    ord("4"): "a block device",
    ord("6"): "a FIFO",
    ord("S"): "a sparse file; pack it without --sparse",
    ord("D"): "a GNU directory dump; pack without --incremental",
    ord("M"): "a part of a multi-volume archive",
    ord("V"): "a volume label; pack without --label",
    ord("X"): "a Solaris extended header; pack in the pax or GNU format",
}
# name, mode, (owner), size, (time), checksum, type, link name, magic, (owner's names, device), prefix, (rest)
_HEADER: Final = struct.Struct("100s8s16x12s12x8sB100s6s82x155s12x")
_FILE: Final = EntryType.FILE
_DIRECTORY: Final = EntryType.DIRECTORY
_ADLER_MODULUS: Final = 65521


class TarParser:
    """Takes the pieces of a tar stream and tells a sink what is in it.

    Data goes to the sink as views of the piece, never copied. ArchiveError as soon as something is wrong.
    """

    __slots__ = (
        "_awaited",
        "_ended",
        "_extension",
        "_extension_kind",
        "_file",
        "_limits",
        "_namespace",
        "_overrides",
        "_padding",
        "_partial",
        "_remaining",
        "_sink",
        "_zero_blocks",
        "entries",
        "unpacked_bytes",
    )

    def __init__(self, sink: EntrySink, limits: ArchiveLimits) -> None:
        self.entries = 0
        self.unpacked_bytes = 0
        self._sink = sink
        self._limits = limits
        self._namespace = Namespace(limits)
        self._partial = b""  # the start of a header whose rest is in the next piece
        self._remaining = 0  # bytes still to come of the file or extended header
        self._padding = 0
        self._file: str | None = None  # path of the file whose data comes
        self._extension = bytearray()
        self._extension_kind = 0
        self._overrides: dict[str, bytes] = {}  # from extended headers, for the next member
        self._awaited = False  # a global header came, and no member since
        self._zero_blocks = 0
        self._ended = False

    def feed(self, piece: bytes) -> None:
        """Take the next bytes of the tar stream."""
        if self._partial:
            piece = self._partial + piece
            self._partial = b""
        end = len(piece)
        position = 0
        sink_data = self._sink.data
        with memoryview(piece) as view:
            while not self._ended:
                if self._remaining:
                    step = min(self._remaining, end - position)
                    if not step:
                        return
                    if self._extension_kind:
                        self._extension += view[position : position + step]
                    else:
                        sink_data(view[position : position + step])
                    position += step
                    self._remaining -= step
                    if self._remaining:
                        return
                    self._end_content()
                if self._padding:
                    step = min(self._padding, end - position)
                    position += step
                    self._padding -= step
                    if self._padding:
                        return
                if end - position < BLOCK:
                    self._partial = piece[position:]
                    return
                self._block(piece, view, position)
                position += BLOCK
        if piece.count(0, position) != end - position:
            raise ArchiveError(
                ArchiveErrorCode.TRAILING_DATA,
                "Data follows the end marker of the tar stream; only zeros were expected. "
                "Pack the bundle in one go, not by concatenating archives.",
            )

    def finish(self) -> None:
        """ArchiveError unless the end marker was seen."""
        if self._ended:
            return
        if self._remaining or self._padding or self._partial or self._overrides:
            where = f" inside member {quoted(self._file)}" if self._file is not None else " inside a member"
            raise ArchiveError(
                ArchiveErrorCode.TRUNCATED,
                f"The tar stream ends{where}. Pack the bundle again: the archive was cut before it was compressed.",
                quoted(self._file) if self._file is not None else None,
            )
        raise ArchiveError(
            ArchiveErrorCode.MISSING_END,
            "The tar stream has no end marker (two blocks of zeros), so members may be missing. Pack the bundle again.",
        )

    def _block(self, piece: bytes, view: memoryview, position: int) -> None:
        """Take the header block at `position`."""
        if not piece[position] and piece.startswith(_ZEROS, position):
            self._zero_blocks += 1
            if self._zero_blocks == 2:
                self._ended = True
                if self._overrides or self._awaited:
                    _corrupt("an extended header is followed by no member")
            return
        if self._zero_blocks:
            _corrupt("a single block of zeros is followed by another member")
        name, mode, size, checksum, flag, link, magic, prefix = _HEADER.unpack_from(piece, position)
        _verify_checksum(checksum, piece, view, position)
        length = _number(size, "size")
        if flag in _EXTENSIONS:
            self._begin_extension(flag, length)
            return
        # Only POSIX archives have a prefix there; GNU ones ("ustar  ") keep times in its place.
        if prefix[0] and magic == b"ustar\0":
            name = _text(prefix) + b"/" + _text(name)
        self._begin_member(flag, _text(name), length, mode, link)

    # -- members

    def _begin_member(self, flag: int, raw: bytes, length: int, mode: bytes, link: bytes) -> None:
        target = b""
        self._awaited = False
        if self._overrides:
            overrides, self._overrides = self._overrides, {}
            raw = overrides.get("path", raw)
            target = overrides.get("linkpath", b"")
            length = int(overrides.get("size", length))
        entry_type = _TYPES.get(flag)
        if entry_type is None:
            raise _unsupported(raw, _REFUSED.get(flag, f"of the unknown type {chr(flag)!r}"))
        if entry_type is _FILE and raw.endswith(b"/"):
            entry_type = _DIRECTORY  # how archives before POSIX mark them
        if length and entry_type is not _FILE:
            raise _unsupported(raw, f"a {entry_type} with {length} bytes of data, which tar programs read differently")
        entry = Entry(self._namespace.add(raw, entry_type), entry_type, length, _mode(mode))
        path = entry.path
        self.entries += 1
        if not path:
            return  # the root itself: whoever unpacks has it already
        if entry_type is _FILE:
            self._begin_file(entry)
        else:
            if entry_type is EntryType.SYMLINK:
                entry.link_target = self._namespace.symlink_target(path, target or _text(link))
            elif entry_type is EntryType.HARDLINK:
                entry.link_target = self._namespace.hardlink_target(path, target or _text(link))
            self._sink.begin(entry)

    def _begin_file(self, entry: Entry) -> None:
        length = entry.size
        if length > self._limits.max_unpacked_bytes:
            raise ArchiveError(
                ArchiveErrorCode.TOO_LARGE,
                f"Member {quoted(entry.path)} says it has {length} bytes; at most {self._limits.max_unpacked_bytes} "
                "are accepted for the whole archive. Leave out what does not run.",
                quoted(entry.path),
                limit="max_unpacked_bytes",
            )
        self.unpacked_bytes += length
        self._sink.begin(entry)
        if length:
            self._file = entry.path
            self._remaining = length
            self._padding = -length % BLOCK
        else:
            self._sink.end()

    def _end_content(self) -> None:
        if self._extension_kind:
            self._end_extension()
        else:
            self._file = None
            self._sink.end()

    # -- extended headers

    def _begin_extension(self, flag: int, size: int) -> None:
        if size > MAX_EXTENSION_BYTES:
            _corrupt(f"an extended header of {size} bytes; at most {MAX_EXTENSION_BYTES} are accepted")
        self._extension_kind = flag
        self._extension = bytearray()
        self._remaining = size
        self._padding = -size % BLOCK
        if not size:
            self._end_extension()

    def _end_extension(self) -> None:
        content, kind = bytes(self._extension), self._extension_kind
        self._extension_kind = 0
        if kind == ord("g"):
            self._namespace.count("")
            self._awaited = True
            if _pax_records(content):
                # Programs differ in whether such a record is for all members or for those that follow directly.
                _corrupt("a global header gives the path or size of members, which each has of its own")
            return
        if kind == ord("x"):
            values = _pax_records(content)
        else:
            values = {"path" if kind == ord("L") else "linkpath": _long_name(content)}
        values[f"({kind})"] = b""  # each kind once, and followed by a member, also if it says nothing of interest
        # Programs differ in which of two names they take, so an archive with two would mean two things.
        if self._overrides.keys() & values.keys():
            _corrupt("a member has two extended headers of one kind, or two that name it")
        self._overrides |= values


def _corrupt(detail: str) -> NoReturn:
    raise ArchiveError(ArchiveErrorCode.CORRUPT, f"The tar stream is damaged: {detail}. Pack the bundle again.")


def _unsupported(raw: bytes, what: str) -> ArchiveError:
    name = quoted(raw.decode("utf-8", "backslashreplace"))
    return ArchiveError(
        ArchiveErrorCode.UNSUPPORTED_MEMBER,
        f"Member {name} is {what}; only files, directories and links inside the bundle are accepted.",
        name,
    )


def _verify_checksum(field: bytes, piece: bytes, view: memoryview, position: int) -> None:
    """Compare the sum of the header's bytes, its checksum field taken as spaces, with that field.

    Adler-32 (RFC 1950) has 1 + the sum of all bytes, modulo 65521, in its low half, and is far faster than `sum`. A
    header's sum rarely reaches the modulus, and an error of exactly that much is none that happens by chance. Where the
    two differ the sums are taken byte by byte: some ancient programs add signed bytes.
    """
    if isal_zlib.adler32(view[position : position + BLOCK]) & 0xFFFF == _expected_adler(field):
        return
    stored = _number(field, "checksum")
    header = piece[position : position + 148] + b" " * 8 + piece[position + 156 : position + BLOCK]
    signed = sum(byte - 256 if byte > 127 else byte for byte in header)
    if stored not in (sum(header), signed):
        _corrupt("a member's header has a wrong checksum, or this is not a tar archive")


@functools.lru_cache(maxsize=8192)
def _expected_adler(field: bytes) -> int:
    """The low half of the Adler-32 of a header that has this checksum field, and the sum that it says."""
    return (_number(field, "checksum") - 8 * 32 + sum(field) + 1) % _ADLER_MODULUS


def _number(field: bytes, what: str) -> int:
    """A number of a header: octal digits, or base-256 when the first bit is set (GNU tar manual, "Extensions")."""
    text = field.strip(b"\0 ")
    if text.isdigit():
        try:
            return int(text, 8)
        except ValueError:
            _corrupt(f"the {what} of a member is {text!r}, not octal")
    if not text:
        return 0
    if field[0] == 0x80:
        return int.from_bytes(field[1:], "big")
    if field[0] > 0x80 or text.startswith(b"-"):
        _corrupt(f"the {what} of a member is negative or absurd")
    _corrupt(f"the {what} of a member is {text!r}, not a number")


@functools.lru_cache(maxsize=256)
def _mode(field: bytes) -> int:
    return _number(field, "mode") & 0o777


def _text(field: bytes) -> bytes:
    """A text field: up to its first NUL, or all of it."""
    end = field.find(0)
    return field if end < 0 else field[:end]


def _long_name(content: bytes) -> bytes:
    """The name in a GNU extended header. It must end with a NUL: without one, some programs read on behind its end."""
    if not content.endswith(b"\0"):
        _corrupt("a long name does not end with a NUL")
    name = content.rstrip(b"\0")
    if not name:
        _corrupt("a long name is empty")
    return name


def _pax_records(content: bytes) -> dict[str, bytes]:
    """The values that matter of a pax extended header: `path`, `linkpath` and `size`, the last of each.

    An empty one is refused: to POSIX the header's own field counts then, to some programs the name is empty.
    """
    values: dict[str, bytes] = {}
    for key, value in _pax_items(content):
        if key in (b"path", b"linkpath", b"size"):
            if not value:
                _corrupt(f"a pax header gives an empty {key.decode()}")
            values[key.decode()] = value
        elif key.startswith(b"GNU.sparse."):
            raise _unsupported(values.get("path", b"(pax header)"), _REFUSED[ord("S")])
    size = values.get("size")
    if size is not None and not (size.isdigit() and len(size) < 20):
        _corrupt(f"a pax header gives the size {size[:40]!r}")
    return values


def _pax_items(content: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Records of the form `length key=value\\n`, the length counting the whole record."""
    position = 0
    while position < len(content):
        space = content.find(b" ", position, position + 8)
        digits = content[position : max(space, position)]
        if not digits.isdigit():
            _corrupt("a pax header has a record without a length")
        end = position + int(digits)
        key, equals, value = content[space + 1 : end - 1].partition(b"=")
        if end <= space or end > len(content) or content[end - 1 : end] != b"\n" or not equals or not key:
            _corrupt("a pax header has a record of the wrong length")
        yield key, value
        position = end
