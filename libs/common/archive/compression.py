"""Decompression in bounded pieces: gzip (RFC 1952) by isal, zstd (RFC 8878) by zstandard.

Each source takes compressed bytes in any chunking, yields pieces of about `PIECE_BYTES` at most, and knows whether the
bytes so far end where a stream may end.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum, auto
from typing import Protocol, cast

import zstandard
from isal import igzip_lib

from libs.common.archive.types import MIB, ArchiveError, ArchiveErrorCode

PIECE_BYTES = 1 * MIB
FRAME_BYTES = PIECE_BYTES
"""A zstd frame with no more content than this, as its header says, can be decompressed apart from others."""

MAX_FRAMES = 1 << 18
"""Most gzip members or zstd frames in one archive: each costs a set-up, however little it holds."""

MAX_BLOCKS = 1 << 21
"""Most zstd blocks in one archive: enough for 256 GiB in whole blocks, and few enough to be walked through quickly."""

MAX_WINDOW_BYTES = 32 * MIB
"""Largest zstd window, the memory of one decompressor. Levels up to 20 without `--long` stay within it."""

GZIP_MAGIC = b"\x1f\x8b"
ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
MAGIC_BYTES = 4

_MAX_GZIP_HEADER_BYTES = 128 * 1024
_MAX_BLOCK_BYTES = 128 * 1024
_MAX_COLLECTED_BYTES = 2 * FRAME_BYTES
"""Largest such frame, compressed. What can't be compressed takes some bytes more; twice as much only in tiny blocks."""
_FHCRC, _FEXTRA, _FNAME, _FCOMMENT, _RESERVED = 2, 4, 8, 16, 0xE0

# The stubs of isal declare the class as an instance.
_IsalError = cast("type[Exception]", igzip_lib.error)


@dataclass(frozen=True, slots=True)
class Frame:
    """A whole zstd frame that has not been decompressed yet. Nothing of it was checked but its framing.

    `size` is the length of its content as its header has it, from 1 to `FRAME_BYTES`.
    """

    compressed: bytes
    size: int

    def __len__(self) -> int:
        return self.size

    def decompress(self) -> bytes:
        """Its content, of `size` bytes, in any thread. ArchiveError where it is not valid or not of that size."""
        try:
            return zstandard.ZstdDecompressor().decompress(self.compressed, allow_extra_data=False)
        except zstandard.ZstdError as error:
            raise _corrupt(ZstdSource.compression, error) from error


class Source(Protocol):
    """A decompressor that is fed."""

    compression: str

    def decompress(self, data: memoryview) -> Iterator[bytes | Frame]:
        """Pieces of what `data` adds, in their order. ArchiveError for what is not valid or not supported.

        `data` is kept as long as a frame is not complete: it must not change.
        """

    def finish(self) -> None:
        """ArchiveError unless the stream may end here."""


def _truncated(compression: str) -> ArchiveError:
    return ArchiveError(
        ArchiveErrorCode.TRUNCATED,
        f"The archive ends inside its {compression} stream; the whole file was expected. Send it again, completely.",
    )


def _corrupt(compression: str, detail: object) -> ArchiveError:
    return ArchiveError(
        ArchiveErrorCode.CORRUPT,
        f"The {compression} stream of the archive is damaged ({detail}). Pack the bundle again and send it again.",
    )


def _trailing(compression: str) -> ArchiveError:
    return ArchiveError(
        ArchiveErrorCode.TRAILING_DATA,
        f"Bytes follow the end of the archive's {compression} stream; nothing was expected there. "
        "Send the archive alone.",
    )


def _too_many_frames(compression: str) -> ArchiveError:
    return ArchiveError(
        ArchiveErrorCode.TOO_MANY_FRAMES,
        f"The archive's {compression} stream has too many parts for its size. Compress it again in one go.",
    )


def source_for(magic: bytes) -> Source:
    """The decompressor for an archive that starts with `magic` (`MAGIC_BYTES`, fewer only if that is all there is)."""
    if not magic:
        raise ArchiveError(ArchiveErrorCode.EMPTY, "The archive is empty; send a gzip or zstd tarball.")
    if magic.startswith(GZIP_MAGIC):
        return GzipSource()
    if magic == ZSTD_MAGIC or _is_skippable(magic):
        return ZstdSource()
    if ZSTD_MAGIC.startswith(magic) or GZIP_MAGIC.startswith(magic):
        raise _truncated("compressed")
    raise ArchiveError(
        ArchiveErrorCode.UNSUPPORTED_COMPRESSION,
        f"The archive is neither gzip nor zstd (it starts with {magic.hex()}). "
        "Pack it with `tar -czf` or `tar --zstd -cf`.",
    )


class GzipSource:
    """gzip, also of several members.

    The header is read here: isal's own reader misreads headers with optional fields that arrive in several chunks.
    """

    compression = "gzip"

    def __init__(self) -> None:
        self._header = bytearray()
        self._inflater: igzip_lib.IgzipDecompressor | None = None
        self._members = 0

    def decompress(self, data: memoryview) -> Iterator[bytes]:
        rest = bytes(data)
        while rest:
            if self._inflater is None:
                rest = self._read_header(rest)
                if self._inflater is None:
                    return
            inflater = self._inflater
            while not inflater.eof:
                try:
                    piece = inflater.decompress(rest, PIECE_BYTES)
                except _IsalError as error:
                    raise _corrupt(self.compression, error) from error
                rest = b""
                if piece:
                    yield piece
                if inflater.needs_input:
                    return
            rest = inflater.unused_data
            self._inflater = None

    def finish(self) -> None:
        if self._header and not self._header.startswith(GZIP_MAGIC):
            raise _trailing(self.compression)
        if self._inflater is not None or self._header or not self._members:
            raise _truncated(self.compression)

    def _read_header(self, data: bytes) -> bytes:
        """Take header bytes from `data`; start the inflater when it is complete. What is left of `data`."""
        header = self._header
        before = len(header)
        header += data[:_MAX_GZIP_HEADER_BYTES]
        if self._members and not GZIP_MAGIC.startswith(header[:2]):
            raise _trailing(self.compression)
        length = _gzip_header_length(header)
        if length is None:
            if len(header) > _MAX_GZIP_HEADER_BYTES:
                raise _corrupt(self.compression, "its header is too long")
            return b""
        header.clear()
        self._members += 1
        if self._members > MAX_FRAMES:
            raise _too_many_frames(self.compression)
        self._inflater = igzip_lib.IgzipDecompressor(flag=igzip_lib.DECOMP_GZIP_NO_HDR_VER)
        return data[length - before :]


def _gzip_header_length(header: bytearray) -> int | None:
    """Length of the member header that `header` starts with (RFC 1952, 2.3), or None when more is needed."""
    if len(header) < 10:
        return None
    flags = header[3]
    if header[:3] != GZIP_MAGIC + b"\x08" or flags & _RESERVED:
        raise _corrupt("gzip", "its header is not of RFC 1952")
    position = 10
    if flags & _FEXTRA:
        if len(header) < position + 2:
            return None
        position += 2 + int.from_bytes(header[position : position + 2], "little")
    for flag in (_FNAME, _FCOMMENT):
        if flags & flag:
            terminator = header.find(0, position)
            if terminator < 0:
                return None
            position = terminator + 1
    if flags & _FHCRC:
        if len(header) < position + 2:
            return None
        if zlib.crc32(header[:position]) & 0xFFFF != int.from_bytes(header[position : position + 2], "little"):
            raise _corrupt("gzip", "wrong checksum of its header")
        position += 2
    return position if len(header) >= position else None


class _Field(Enum):
    """Which fixed-length part of a zstd stream is being collected."""

    MAGIC = auto()
    SKIP_SIZE = auto()
    DESCRIPTOR = auto()
    HEADER = auto()
    BLOCK = auto()


class ZstdSource:
    """zstd, also of several frames and with skippable ones.

    zstandard decompresses all that it is given at once, and four bytes can stand for 128 KiB. So the framing (RFC 8878,
    3.1.1) is followed here: no more blocks are handed over at a time than fit a piece, and the end of a frame is known.
    A frame that says it fits a piece is collected instead, and given away whole: it can't unpack to more than it says.
    """

    compression = "zstd"

    def __init__(self) -> None:
        self._context = zstandard.ZstdDecompressor(max_window_size=MAX_WINDOW_BYTES)
        self._frame: zstandard.ZstdDecompressionObj | None = None  # that is decompressed as it comes
        self._collected: list[bytes | memoryview] | None = None  # of the frame that is to be given away
        self._collected_bytes = 0
        self._content_size = 0
        self._frames = 0
        self._blocks = 0
        self._state = _Field.MAGIC
        self._field = bytearray()
        self._needed = 4
        self._opaque = 0  # bytes of a block's body, a checksum or a skippable frame still to pass
        self._checksum_bytes = 0
        self._last_block = False

    def decompress(self, data: memoryview) -> Iterator[bytes | Frame]:
        start = position = produced = 0
        end = len(data)
        while position < end:
            if self._opaque:
                step = min(self._opaque, end - position)
                position += step
                self._opaque -= step
                if self._opaque:
                    break
            else:
                step = min(self._needed - len(self._field), end - position)
                self._field += data[position : position + step]
                position += step
                if len(self._field) < self._needed:
                    break
                if self._state is _Field.BLOCK:
                    produced += self._begin_block()
                else:
                    self._read_frame_header()
                    start = position
            if self._last_block and not self._opaque:
                yield from self._hand_over(data[start:position])
                yield from self._end_frame()
                start, produced = position, 0
            elif produced > PIECE_BYTES - _MAX_BLOCK_BYTES and self._collected is None:
                yield from self._hand_over(data[start:position])
                start, produced = position, 0
        yield from self._hand_over(data[start:position])

    def finish(self) -> None:
        if self._frames and self._state is _Field.MAGIC and not self._opaque and self._field:
            raise _trailing(self.compression)
        if not self._frames or self._opaque or self._field or self._state is not _Field.MAGIC:
            raise _truncated(self.compression)

    def _hand_over(self, data: memoryview) -> Iterator[bytes]:
        if self._collected is not None:
            self._collected.append(data)
            self._collected_bytes += len(data)
            if self._collected_bytes > _MAX_COLLECTED_BYTES:
                raise _too_many_frames(self.compression)
        elif self._frame is not None and data:
            try:
                piece = self._frame.decompress(data)
            except zstandard.ZstdError as error:
                raise _corrupt(self.compression, error) from error
            if piece:
                yield piece

    def _expect(self, state: _Field, needed: int) -> None:
        self._state, self._needed = state, needed

    def _read_frame_header(self) -> None:
        """Take the step that the completed field allows. The field grows until the frame header is whole."""
        field = bytes(self._field)
        if self._state is _Field.MAGIC:
            if field == ZSTD_MAGIC:
                self._expect(_Field.DESCRIPTOR, 5)
            elif _is_skippable(field):
                self._expect(_Field.SKIP_SIZE, 8)
            else:
                raise _trailing(self.compression)
        elif self._state is _Field.SKIP_SIZE:
            self._count_frame()
            self._opaque = int.from_bytes(field[4:], "little")
            self._field.clear()
            self._expect(_Field.MAGIC, 4)
        elif self._state is _Field.DESCRIPTOR:
            self._expect(_Field.HEADER, _zstd_header_length(field[4]))
        if self._state is _Field.HEADER and len(field) == self._needed:
            self._begin_frame(field)

    def _count_frame(self) -> None:
        self._frames += 1
        if self._frames > MAX_FRAMES:
            raise _too_many_frames(self.compression)

    def _begin_frame(self, header: bytes) -> None:
        try:
            parameters = zstandard.get_frame_parameters(header)
        except zstandard.ZstdError as error:
            raise _corrupt(self.compression, error) from error
        if parameters.dict_id:
            raise ArchiveError(
                ArchiveErrorCode.UNSUPPORTED_COMPRESSION,
                "The archive needs a zstd dictionary; none is known here. Compress it without a dictionary.",
            )
        if parameters.window_size > MAX_WINDOW_BYTES:
            raise ArchiveError(
                ArchiveErrorCode.WINDOW_TOO_LARGE,
                f"The archive needs a zstd window of {parameters.window_size} bytes; at most {MAX_WINDOW_BYTES} are "
                "accepted. Compress it at level 19 or lower, without --long.",
            )
        self._count_frame()
        self._checksum_bytes = 4 if parameters.has_checksum else 0
        # Of a frame that says it is empty zstandard would not look at the blocks.
        if 0 < parameters.content_size <= FRAME_BYTES:
            self._collected, self._collected_bytes = [header], 0
            self._content_size = parameters.content_size
        else:  # or not known, which is the largest number there is
            self._frame = self._context.decompressobj(write_size=PIECE_BYTES)
            self._frame.decompress(header)
        self._field.clear()
        self._expect(_Field.BLOCK, 3)

    def _begin_block(self) -> int:
        """Read a block header; the most bytes that the block can decompress to."""
        self._blocks += 1
        if self._blocks > MAX_BLOCKS:
            raise _too_many_frames(self.compression)
        bits = int.from_bytes(self._field, "little")
        self._field.clear()
        self._last_block, kind, size = bool(bits & 1), bits >> 1 & 3, bits >> 3
        if kind == 3 or size > _MAX_BLOCK_BYTES:
            raise _corrupt(self.compression, "an impossible block")
        self._opaque = 1 if kind == 1 else size
        if self._last_block:
            self._opaque += self._checksum_bytes
        return size if kind < 2 else _MAX_BLOCK_BYTES

    def _end_frame(self) -> Iterator[Frame]:
        if self._collected is not None:
            yield Frame(b"".join(self._collected), self._content_size)
            self._collected = None
        elif self._frame is None or not self._frame.eof:
            raise _corrupt(self.compression, "a frame without its end")
        self._frame = None
        self._last_block = False
        self._expect(_Field.MAGIC, 4)


def _is_skippable(magic: bytes) -> bool:
    return magic[1:] == b"\x2a\x4d\x18" and magic[0] >> 4 == 5


def _zstd_header_length(descriptor: int) -> int:
    """Length of a frame header in bytes, its magic included, by its descriptor (RFC 8878, 3.1.1.1.1)."""
    single_segment = descriptor >> 5 & 1
    window = 0 if single_segment else 1
    dictionary = (0, 1, 2, 4)[descriptor & 3]
    content_size = (single_segment, 2, 4, 8)[descriptor >> 6]
    return 5 + window + dictionary + content_size
