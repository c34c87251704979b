"""Mach-O and PE headers, and the window through which the readers of native formats see a file that streams by."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Protocol

HEAD_BYTES = 64 * 1024
MAX_RANGE_BYTES = 64 * 1024
_MAX_RANGES = 64

Found = tuple[str, str, str]
"""Operating system, architecture, C library or "": the fields of a Platform."""


class FileWindow:
    """A file of which the first `HEAD_BYTES` are kept, and the ranges that were asked for before they passed."""

    __slots__ = ("_ranges", "end", "head")

    def __init__(self) -> None:
        self.head = bytearray()
        self.end = 0  # how many bytes of the file have passed
        self._ranges: dict[tuple[int, int], bytearray] = {}

    def feed(self, chunk: memoryview) -> None:
        """Take the next bytes of the file."""
        start = self.end
        self.end += len(chunk)
        if len(self.head) < HEAD_BYTES:
            self.head += chunk[: HEAD_BYTES - len(self.head)]
        for wanted, kept in self._ranges.items():
            self._keep(wanted, kept, start, chunk)

    def want(self, offset: int, length: int, chunk: memoryview) -> None:
        """Ask to keep a range of the file. `chunk` is the one that was fed last; what passed before it is unknown."""
        key = (offset, length)
        if 0 < length <= MAX_RANGE_BYTES and key not in self._ranges and len(self._ranges) < _MAX_RANGES:
            kept = self._ranges[key] = bytearray()
            kept += self.head[offset : min(offset + length, self.end - len(chunk))]
            self._keep(key, kept, self.end - len(chunk), chunk)

    def get(self, offset: int, length: int) -> bytes | None:
        """The bytes of a range that was asked for or lies in the head; None when they did not all pass in time."""
        if offset + length <= len(self.head):
            return bytes(self.head[offset : offset + length])
        kept = self._ranges.get((offset, length))
        return bytes(kept) if kept is not None and len(kept) == length else None

    @staticmethod
    def _keep(wanted: tuple[int, int], kept: bytearray, start: int, chunk: memoryview) -> None:
        """Append what `chunk`, which starts at `start`, has of the range, if it continues what is kept."""
        missing = wanted[0] + len(kept)
        if start <= missing < start + len(chunk):
            kept += chunk[missing - start : wanted[0] + wanted[1] - start]


class FormatReader(Protocol):
    """Understands one format."""

    def advance(self, window: FileWindow, chunk: memoryview) -> bool:
        """Look at the file so far, `chunk` being its latest bytes. Whether no more of it is needed."""

    def finish(self, window: FileWindow) -> set[Found]:
        """For what the file was built. Called at its end or after `advance` said that it suffices."""


# Of CPU_TYPE_* in mach/machine.h.
_MACHO_CPUS = {
    0x01000007: "x64",
    0x0100000C: "arm64",
    0x01000012: "ppc64",
    7: "ia32",
    12: "arm",
    18: "ppc",
}
_MACHO_RUNNABLE = {2, 6, 8}  # MH_EXECUTE, MH_DYLIB, MH_BUNDLE; not objects, stubs, debug symbols or kernel extensions
_MACHO_ORDERS = {
    b"\xfe\xed\xfa\xce": ">",
    b"\xfe\xed\xfa\xcf": ">",
    b"\xce\xfa\xed\xfe": "<",
    b"\xcf\xfa\xed\xfe": "<",
}
_FAT, _FAT64 = b"\xca\xfe\xba\xbe", b"\xca\xfe\xba\xbf"
_MACHO_HEADER_BYTES = 16
# A Java class file starts like a fat binary; its next four bytes are its version, 45 or more.
_MAX_FAT_SLICES = 44
MACHO_MAGICS = frozenset({*_MACHO_ORDERS, _FAT, _FAT64})


class MachoReader:
    """Mach-O, thin and universal, of both widths and byte orders."""

    __slots__ = ("_asked",)

    def __init__(self) -> None:
        self._asked = False

    def advance(self, window: FileWindow, chunk: memoryview) -> bool:
        if bytes(window.head[:4]) in _MACHO_ORDERS:
            return len(window.head) >= _MACHO_HEADER_BYTES
        count = _fat_count(window.head)
        if count is None:
            return len(window.head) >= 8
        slices = list(_fat_slices(window.head, count))
        if not self._asked and len(slices) == count:
            self._asked = True
            for offset in slices:
                window.want(offset, _MACHO_HEADER_BYTES, chunk)
        return False

    def finish(self, window: FileWindow) -> set[Found]:
        if bytes(window.head[:4]) in _MACHO_ORDERS:
            return _macho_header(bytes(window.head[:_MACHO_HEADER_BYTES]))
        found: set[Found] = set()
        for offset in _fat_slices(window.head, _fat_count(window.head) or 0):
            found |= _macho_header(window.get(offset, _MACHO_HEADER_BYTES) or b"")
        return found


def _macho_header(header: bytes) -> set[Found]:
    order = _MACHO_ORDERS.get(header[:4])
    if order is None or len(header) < _MACHO_HEADER_BYTES:
        return set()
    cpu, _, file_type = struct.unpack_from(f"{order}3I", header, 4)
    arch = _MACHO_CPUS.get(cpu)
    return {("darwin", arch, "")} if arch and file_type in _MACHO_RUNNABLE else set()


def _fat_count(head: bytearray) -> int | None:
    """How many slices a universal binary has; None if that is not known yet or it is none."""
    if len(head) < 8:
        return None
    count: int = struct.unpack_from(">I", head, 4)[0]
    return count if 0 < count <= _MAX_FAT_SLICES else None


def _fat_slices(head: bytearray, count: int) -> Iterator[int]:
    """The offsets of the slices, as far as their table is there."""
    layout, size = (">2I2Q2I", 32) if head[:4] == _FAT64 else (">5I", 20)
    for index in range(count):
        position = 8 + index * size
        if position + size <= len(head):
            yield struct.unpack_from(layout, head, position)[2]


# Of IMAGE_FILE_MACHINE_*.
_PE_MACHINES = {0x8664: "x64", 0x14C: "ia32", 0xAA64: "arm64", 0xA641: "arm64", 0x1C0: "arm", 0x1C4: "arm"}
_PE_CLR_DIRECTORY = 14
_PE_PLUS = 0x20B


class PeReader:
    """PE as far as its headers lie in the head of the file, which they do by a wide margin."""

    __slots__ = ()

    def advance(self, window: FileWindow, chunk: memoryview) -> bool:
        return len(window.head) >= HEAD_BYTES

    def finish(self, window: FileWindow) -> set[Found]:
        head = window.head
        try:
            (start,) = struct.unpack_from("<I", head, 0x3C)
            signature, machine = struct.unpack_from("<4sH", head, start)
            arch = _PE_MACHINES.get(machine)
            if signature != b"PE\0\0" or arch is None or _is_managed(head, start + 24):
                return set()
        except struct.error:
            return set()
        return {("win32", arch, "")}


def _is_managed(head: bytearray, optional_header: int) -> bool:
    """Whether it is a .NET assembly: those run on any platform, whatever machine they name."""
    try:
        (magic,) = struct.unpack_from("<H", head, optional_header)
        directories = optional_header + (112 if magic == _PE_PLUS else 96)
        (count,) = struct.unpack_from("<I", head, directories - 4)
        (address,) = struct.unpack_from("<I", head, directories + _PE_CLR_DIRECTORY * 8)
    except struct.error:
        return False
    return bool(count > _PE_CLR_DIRECTORY and address)
