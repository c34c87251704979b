"""ELF executables and shared objects: machine, operating system and C library (System V gABI, chapters 4 and 5)."""

from __future__ import annotations

import struct
from dataclasses import dataclass

from libs.common.native.formats import MAX_RANGE_BYTES, FileWindow, Found

_ET_EXEC, _ET_DYN = 2, 3
_PT_LOAD, _PT_DYNAMIC, _PT_INTERP, _PT_NOTE = 1, 2, 3, 4
_DT_NULL, _DT_NEEDED, _DT_STRTAB = 0, 1, 5
_HEADER_BYTES = 64
_MAX_SEGMENTS = 512

# EI_OSABI. Linux files mostly say 0, System V.
_SYSTEMS = {0: "linux", 3: "linux", 2: "netbsd", 6: "sunos", 9: "freebsd", 12: "openbsd"}

# e_machine and the width in bits. Machines that are not here are no hosts of ours: GPUs, BPF, microcontrollers.
_MACHINES = {
    (3, 32): "ia32",
    (62, 64): "x64",
    (40, 32): "arm",
    (183, 64): "arm64",
    (20, 32): "ppc",
    (21, 64): "ppc64",
    (22, 64): "s390x",
    (243, 64): "riscv64",
    (258, 64): "loong64",
    (8, 32): "mips",
}

# Starts of the names of the C libraries in DT_NEEDED and of the loaders in PT_INTERP.
_LIBRARIES = {
    b"libc.so.6\0": "glibc",
    b"ld-linux": "glibc",
    b"libc.musl-": "musl",
    b"ld-musl-": "musl",
    b"libc.so\0": "musl",
}
# Three searches find the starts of all of them.
_NEEDLES = (b"libc.", b"ld-linux", b"ld-musl-")
_LONGEST = max(len(name) for name in _LIBRARIES)

# A file with more of them than this is made to cost time: the search ends.
_MAX_OCCURRENCES = 65_536


@dataclass(frozen=True, slots=True)
class _Segment:
    """A program header: `offset` and `size` in the file, `address` in memory."""

    kind: int
    offset: int
    address: int
    size: int


@dataclass(frozen=True, slots=True)
class _Layout:
    """What the ELF header says about the file."""

    order: str
    bits: int
    system: str
    arch: str
    table: int
    entry_bytes: int
    entries: int


class ElfReader:
    """Finds out the C library without keeping the file.

    The names that a shared object needs are in a string table which may pass before or after the table that points
    into it. So the offset of each possible name is noted as it passes, and at the end it is seen which is pointed at.
    """

    __slots__ = ("_asked", "_layout", "_names", "_occurrences", "_segments", "_tail")

    def __init__(self) -> None:
        self._layout: _Layout | None = None
        self._segments: list[_Segment] | None = None
        self._asked = False
        self._names: dict[int, str] = {}  # offset in the file -> C library
        self._occurrences = 0
        self._tail = b""

    def advance(self, window: FileWindow, chunk: memoryview) -> bool:
        if self._layout is None:
            if len(window.head) < _HEADER_BYTES:
                self._note_names(window, chunk)
                return False
            self._layout = _read_layout(bytes(window.head[:_HEADER_BYTES]))
            if self._layout is None:
                return True
        if self._segments is None:
            self._read_segments(self._layout, window, chunk)
        self._note_names(window, chunk)
        return False

    def finish(self, window: FileWindow) -> set[Found]:
        layout = self._layout
        if layout is None:
            return set()
        segments = self._segments or []
        contents = dict.fromkeys((_PT_INTERP, _PT_DYNAMIC, _PT_NOTE), b"")
        missing = self._segments is None and layout.entries > 0
        for segment in segments:
            if segment.kind in contents:
                content = window.get(segment.offset, segment.size)
                missing = missing or (content is None and segment.kind == _PT_DYNAMIC)
                contents[segment.kind] += content or b""
        loader = contents[_PT_INTERP]
        if b"/system/bin/linker" in loader or b"Android\0" in contents[_PT_NOTE]:
            return {("android", layout.arch, "")}
        if layout.system != "linux":
            return {(layout.system, layout.arch, "")}
        libc = _loader_library(loader) or self._needed_library(layout, segments, contents[_PT_DYNAMIC])
        if not libc and missing:
            libc = self._likely_library()
        return {("linux", layout.arch, libc)}

    def _read_segments(self, layout: _Layout, window: FileWindow, chunk: memoryview) -> None:
        """Read the program headers once they have passed, and ask for the segments that matter."""
        length = layout.entries * layout.entry_bytes
        if not self._asked:
            self._asked = True
            window.want(layout.table, length, chunk)
        table = window.get(layout.table, length)
        if table is None:
            return
        self._segments = [_read_segment(layout, table, index) for index in range(layout.entries)]
        for segment in self._segments:
            if segment.kind in (_PT_DYNAMIC, _PT_INTERP, _PT_NOTE):
                window.want(segment.offset, segment.size, chunk)

    def _note_names(self, window: FileWindow, chunk: memoryview) -> None:
        """Note where names of C libraries start. The end of each chunk is looked at again with the next one."""
        data = self._tail + bytes(chunk)
        base = window.end - len(data)
        for needle in _NEEDLES:
            found = data.find(needle)
            while found >= 0 and self._occurrences < _MAX_OCCURRENCES:
                self._occurrences += 1
                for name, libc in _LIBRARIES.items():
                    if data.startswith(name, found):
                        self._names[base + found] = libc
                found = data.find(needle, found + 1)
        self._tail = data[-(_LONGEST - 1) :]

    def _needed_library(self, layout: _Layout, segments: list[_Segment], dynamic: bytes) -> str:
        """The C library that a DT_NEEDED entry names, or ""."""
        entry = layout.order + ("2Q" if layout.bits == 64 else "2I")
        usable = len(dynamic) - len(dynamic) % struct.calcsize(entry)
        strings, needed = None, []
        for tag, value in struct.iter_unpack(entry, dynamic[:usable]):
            if tag == _DT_NULL:
                break
            if tag == _DT_STRTAB:
                strings = _file_offset(segments, value)
            elif tag == _DT_NEEDED:
                needed.append(value)
        if strings is None:
            return ""
        found = {self._names.get(strings + value, "") for value in needed}
        return max(found, default="")

    def _likely_library(self) -> str:
        """A guess for files whose headers lie behind what they describe: the only C library that they mention."""
        mentioned = set(self._names.values())
        return mentioned.pop() if len(mentioned) == 1 else ""


def _read_layout(header: bytes) -> _Layout | None:
    """None unless it is an executable or shared object for a machine that can be a host."""
    bits = {1: 32, 2: 64}.get(header[4], 0)
    order = {1: "<", 2: ">"}.get(header[5], "")
    if not bits or not order:
        return None
    kind, machine = struct.unpack_from(order + "2H", header, 16)
    if bits == 64:
        table, entry_bytes, entries = (
            *struct.unpack_from(order + "Q", header, 32),
            *struct.unpack_from(order + "2H", header, 54),
        )
    else:
        table, entry_bytes, entries = (
            *struct.unpack_from(order + "I", header, 28),
            *struct.unpack_from(order + "2H", header, 42),
        )
    arch, system = _MACHINES.get((machine, bits)), _SYSTEMS.get(header[7])
    if arch is None or system is None or kind not in (_ET_EXEC, _ET_DYN):
        return None
    if arch == "mips" and order == "<":
        arch = "mipsel"
    if entry_bytes < (56 if bits == 64 else 32) or entries > _MAX_SEGMENTS or entries * entry_bytes > MAX_RANGE_BYTES:
        entries = 0
    return _Layout(order, bits, system, arch, table, entry_bytes, entries)


def _read_segment(layout: _Layout, table: bytes, index: int) -> _Segment:
    position = index * layout.entry_bytes
    if layout.bits == 64:
        kind, _, offset, address, _, size = struct.unpack_from(layout.order + "2I4Q", table, position)
    else:
        kind, offset, address, _, size = struct.unpack_from(layout.order + "5I", table, position)
    return _Segment(kind, offset, address, size)


def _file_offset(segments: list[_Segment], address: int) -> int | None:
    """Where in the file the bytes are that are loaded at `address`."""
    for segment in segments:
        if segment.kind == _PT_LOAD and segment.address <= address < segment.address + segment.size:
            return segment.offset + address - segment.address
    return None


def _loader_library(interpreter: bytes) -> str:
    name = interpreter.rstrip(b"\0").rpartition(b"/")[2]
    return next((libc for start, libc in _LIBRARIES.items() if name.startswith(start)), "")
