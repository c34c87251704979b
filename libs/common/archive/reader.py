"""The reader: compressed bytes are pushed in, members come out at a sink."""

from __future__ import annotations

from collections.abc import Iterator

from libs.common.archive.compression import MAGIC_BYTES, Frame, Source, source_for
from libs.common.archive.tar import TarParser
from libs.common.archive.types import (
    RATIO_FLOOR_BYTES,
    ArchiveError,
    ArchiveErrorCode,
    ArchiveLimits,
    ArchiveTotals,
    EntrySink,
)

_WINDOW_BYTES = 128 * 1024


class Decompression:
    """The first half of reading an archive: compressed bytes are pushed in, bounded pieces of the tar stream come out.

    Raises ArchiveError for what is damaged, too large or a bomb; of no use afterwards.
    """

    def __init__(self, limits: ArchiveLimits) -> None:
        self.compressed_bytes = 0
        self.stream_bytes = 0
        self._limits = limits
        self._source: Source | None = None
        self._magic = b""

    @property
    def compression(self) -> str:
        """`gzip` or `zstd`; empty before the first bytes."""
        return self._source.compression if self._source else ""

    def feed(self, chunk: bytes | bytearray | memoryview) -> Iterator[bytes]:
        """The pieces of the tar stream that the next compressed bytes add. Take them all before the next call."""
        for piece in self.split(chunk):
            yield piece.decompress() if isinstance(piece, Frame) else piece

    def split(self, chunk: bytes | bytearray | memoryview) -> Iterator[bytes | Frame]:
        """The same pieces, but those that can be decompressed apart from others are left to the caller.

        They count with the size they say they have, and fail when they are decompressed and have not.
        """
        if self._source is None:
            # Keep the first bytes until there are enough to tell the formats apart.
            self._magic += bytes(chunk)
            if len(self._magic) < MAGIC_BYTES:
                return
            self._source = source_for(self._magic[:MAGIC_BYTES])
            chunk, self._magic = self._magic, b""
        # A source may keep what it gets, and only bytes are sure not to change.
        view = memoryview(chunk if isinstance(chunk, bytes) else bytes(chunk))
        position, end = 0, len(view)
        while position < end:
            # Cut at multiples of the window in the whole stream, so that the ratio is judged at the same places
            # whatever the chunks are.
            step = min(end - position, _WINDOW_BYTES - self.compressed_bytes % _WINDOW_BYTES)
            yield from self._decompress(view[position : position + step], self._source)
            position += step

    def finish(self) -> None:
        """Declare the end of the compressed bytes. ArchiveError if they are not a whole archive."""
        if self._source is None:
            self._source = source_for(self._magic)
        self._source.finish()

    def _decompress(self, data: memoryview, source: Source) -> Iterator[bytes | Frame]:
        limits = self._limits
        window_end = (self.compressed_bytes // _WINDOW_BYTES + 1) * _WINDOW_BYTES
        self.compressed_bytes += len(data)
        if self.compressed_bytes > limits.max_compressed_bytes:
            raise ArchiveError(
                ArchiveErrorCode.TOO_LARGE,
                f"The archive has more than {limits.max_compressed_bytes} compressed bytes. "
                "Leave out what does not run.",
                limit="max_compressed_bytes",
            )
        allowed = max(RATIO_FLOOR_BYTES, limits.max_ratio * window_end)
        for piece in source.decompress(data):
            self.stream_bytes += len(piece)
            if self.stream_bytes > limits.max_unpacked_bytes:
                raise ArchiveError(
                    ArchiveErrorCode.TOO_LARGE,
                    f"The archive unpacks to more than {limits.max_unpacked_bytes} bytes. Leave out what does not run.",
                    limit="max_unpacked_bytes",
                )
            if self.stream_bytes > allowed:
                raise ArchiveError(
                    ArchiveErrorCode.RATIO,
                    f"The archive unpacks to more than {limits.max_ratio} times its compressed size, as only bombs and "
                    "files of zeros do. Create such files when the job runs.",
                    limit="max_ratio",
                )
            yield piece


class ArchiveReader:
    """Decompresses and parses an archive as its bytes arrive, and tells a sink what is in it.

    Raises ArchiveError as soon as something is wrong, and again on each later call. Blocks for the time that
    decompression and the sink take: an event loop calls it in a thread.
    """

    def __init__(self, sink: EntrySink, limits: ArchiveLimits | None = None) -> None:
        limits = limits or ArchiveLimits()
        self._decompression = Decompression(limits)
        self._tar = TarParser(sink, limits)
        self._error: ArchiveError | None = None

    def feed(self, chunk: bytes | bytearray | memoryview) -> None:
        """Take the next compressed bytes, in chunks of any size."""
        self._guard(chunk)

    def finish(self) -> ArchiveTotals:
        """Declare the end of the compressed bytes. ArchiveError if the archive is not complete."""
        self._guard(None)
        return ArchiveTotals(
            compressed_bytes=self._decompression.compressed_bytes,
            stream_bytes=self._decompression.stream_bytes,
            unpacked_bytes=self._tar.unpacked_bytes,
            entries=self._tar.entries,
            compression=self._decompression.compression,
        )

    def _guard(self, chunk: bytes | bytearray | memoryview | None) -> None:
        if self._error is not None:
            raise self._error
        try:
            if chunk is None:
                self._decompression.finish()
                self._tar.finish()
            else:
                for piece in self._decompression.feed(chunk):
                    self._tar.feed(piece)
        except ArchiveError as error:
            self._error = error
            raise
