"""Which of the formats a file has, and so its platforms, while its bytes stream by."""

from __future__ import annotations

from libs.common.native.elf import ElfReader
from libs.common.native.formats import MACHO_MAGICS, FileWindow, FormatReader, MachoReader, PeReader
from libs.common.native.platforms import Platform

_MAGIC_BYTES = 4


class NativeSniffer:
    """Told a file's bytes in any chunking, says for which platforms it is native code.

    Files of other kinds cost a look at their first four bytes. Memory is bounded by a few hundred KiB whatever the file
    says. Malformed files are never an error: they are not native, or as much of them as could be read.
    """

    __slots__ = ("_done", "_prefix", "_reader", "_window")

    def __init__(self) -> None:
        self._prefix = b""
        self._done = False
        self._reader: FormatReader | None = None
        self._window: FileWindow | None = None

    def feed(self, chunk: memoryview) -> None:
        """Take the next bytes of the file."""
        if self._done:
            return
        if self._reader is None:
            prefix = self._prefix + bytes(chunk[: _MAGIC_BYTES - len(self._prefix)])
            if len(prefix) < _MAGIC_BYTES:
                self._prefix = prefix
                return
            self._reader = _reader_for(prefix)
            if self._reader is None:
                self._done = True
                return
            self._window = FileWindow()
            if self._prefix:
                self._advance(memoryview(self._prefix))
        self._advance(chunk)

    def finish(self) -> frozenset[Platform]:
        """For which platforms the file is native code: none, one, or several for a universal binary."""
        if self._reader is None or self._window is None:
            return frozenset()
        return frozenset(Platform(*found) for found in self._reader.finish(self._window))

    def _advance(self, chunk: memoryview) -> None:
        if self._window is not None and self._reader is not None:
            self._window.feed(chunk)
            self._done = self._reader.advance(self._window, chunk)


def _reader_for(magic: bytes) -> FormatReader | None:
    if magic == b"\x7fELF":
        return ElfReader()
    if magic in MACHO_MAGICS:
        return MachoReader()
    if magic.startswith(b"MZ"):
        return PeReader()
    return None
