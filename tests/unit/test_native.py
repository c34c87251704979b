"""Platforms of native files by their headers, from real files and from made-up ones."""

from __future__ import annotations

import struct
import sys
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from libs.common.native import NativeSniffer, Platform, host_platform


def sniff(data: bytes, size: int = 1 << 20) -> list[str]:
    sniffer = NativeSniffer()
    for start in range(0, len(data), size):
        sniffer.feed(memoryview(data)[start : start + size])
    return sorted(map(str, sniffer.finish()))


def elf(
    *,
    machine: int = 62,
    kind: int = 3,
    bits: int = 64,
    order: str = "<",
    system: int = 0,
    needed: tuple[bytes, ...] = (),
    interpreter: bytes = b"",
    strings_first: bool = True,
    note: bytes = b"",
    table_last: bool = False,
    filler: int = 0,
) -> bytes:
    """A shared object with just program headers, `.dynamic`, `.dynstr` and what else is asked for."""
    wide = bits == 64
    strings = b"\0" + b"".join(name + b"\0" for name in needed)
    address = 0x10000
    count = 1 + bool(needed) + bool(interpreter) + bool(note)
    header_size, entry_size = (64, 56) if wide else (52, 32)
    start = 64 if table_last else 64 + count * entry_size
    word = order + ("2Q" if wide else "2I")
    offsets = [1 + sum(len(name) + 1 for name in needed[:index]) for index in range(len(needed))]
    dynamic_size = struct.calcsize(word) * (len(needed) + 2)
    gap = bytes(filler)
    if strings_first:
        strings_at, dynamic_at = start, start + len(strings) + filler
    else:
        dynamic_at, strings_at = start, start + dynamic_size + filler
    dynamic = b"".join(struct.pack(word, 1, offset) for offset in offsets)
    dynamic += struct.pack(word, 5, address + strings_at) + struct.pack(word, 0, 0)
    body = strings + gap + dynamic if strings_first else dynamic + gap + strings
    interpreter_at = start + len(body)
    note_at = interpreter_at + len(interpreter)
    end = note_at + len(note)

    def segment(kind: int, offset: int, size: int) -> bytes:
        if wide:
            return struct.pack(order + "2I6Q", kind, 4, offset, address + offset, 0, size, size, 8)
        return struct.pack(order + "8I", kind, offset, address + offset, 0, size, size, 4, 8)

    table = segment(1, 0, end)
    if needed:
        table += segment(2, dynamic_at, dynamic_size)
    if interpreter:
        table += segment(3, interpreter_at, len(interpreter))
    if note:
        table += segment(4, note_at, len(note))
    table_at = end if table_last else 64
    head = b"\x7fELF" + bytes([2 if wide else 1, 1 if order == "<" else 2, 1, system]) + bytes(8)
    if wide:
        head += struct.pack(
            order + "2HI3QI6H", kind, machine, 1, 0, table_at, 0, 0, header_size, entry_size, count, 0, 0, 0
        )
    else:
        head += struct.pack(
            order + "2HI3II6H", kind, machine, 1, 0, table_at, 0, 0, header_size, entry_size, count, 0, 0, 0
        )
    head = head.ljust(64, b"\0")
    content = body + interpreter + note
    return head + content + table if table_last else head + table + content


def macho(cpu: int = 0x0100000C, file_type: int = 8, order: str = "<", *, wide: bool = True) -> bytes:
    return struct.pack(order + "7I", 0xFEEDFACF if wide else 0xFEEDFACE, cpu, 0, file_type, 0, 0, 0) + bytes(100)


def fat(*slices: bytes, wide: bool = False, gap: int = 4096) -> bytes:
    table = struct.pack(">2I", 0xCAFEBABF if wide else 0xCAFEBABE, len(slices))
    position = gap
    body = b""
    for content in slices:
        if wide:
            table += struct.pack(">2I2Q2I", 1, 0, position, len(content), 12, 0)
        else:
            table += struct.pack(">5I", 1, 0, position, len(content), 12)
        body += content.ljust(gap, b"\0")
        position += len(content.ljust(gap, b"\0"))
    return table.ljust(gap, b"\0") + body


def pe(machine: int = 0x8664, *, managed: bool = False, wide: bool = True, start: int = 0x80) -> bytes:
    directories = b"".join(struct.pack("<2I", 0x2000 if managed and i == 14 else 0, 0) for i in range(16))
    optional = struct.pack("<H", 0x20B if wide else 0x10B).ljust(108 if wide else 92, b"\0") + struct.pack("<I", 16)
    coff = b"PE\0\0" + struct.pack("<2H3I2H", machine, 1, 0, 0, 0, len(optional + directories), 0x22)
    return (b"MZ" + bytes(58) + struct.pack("<I", start)).ljust(start, b"\0") + coff + optional + directories


# -- real files


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("@duckdb/node-bindings-linux-x64/duckdb.node", ["linux/x64/glibc"]),
        ("@duckdb/node-bindings-linux-x64/libduckdb.so", ["linux/x64/glibc"]),
        ("@duckdb/node-bindings-darwin-arm64/duckdb.node", ["darwin/arm64"]),
        ("@duckdb/node-bindings-darwin-arm64/libduckdb.dylib", ["darwin/arm64", "darwin/x64"]),
        ("@rollup/rollup-linux-x64-musl/*.node", ["linux/x64/musl"]),
        ("@rollup/rollup-linux-arm64-gnu/*.node", ["linux/arm64/glibc"]),
        ("@rollup/rollup-linux-s390x-gnu/*.node", ["linux/s390x/glibc"]),
        ("@rollup/rollup-win32-x64-msvc/*.node", ["win32/x64"]),
        ("@rollup/rollup-win32-arm64-msvc/*.node", ["win32/arm64"]),
        ("@rollup/rollup-darwin-x64/*.node", ["darwin/x64"]),
        ("@rollup/rollup-freebsd-x64/*.node", ["freebsd/x64"]),
        ("@rollup/rollup-android-arm64/*.node", ["android/arm64"]),
    ],
)
def test_real_files_are_recognised(native_packages: Path, pattern: str, expected: list[str]) -> None:
    (path,) = native_packages.glob(pattern)
    data = path.read_bytes()
    assert sniff(data) == expected
    assert sniff(data, 65_521) == expected
    assert sniff(data[:100_000], 1) == sniff(data[:100_000])


def test_python_and_its_extensions_are_of_this_platform() -> None:
    host = host_platform()
    assert sniff(Path(sys.executable).resolve().read_bytes()) == [str(host)]
    libraries = [path for path in Path("/usr/bin").iterdir() if path.name in ("tar", "ls", "gzip", "env")]
    found = [sniff(path.read_bytes()) for path in libraries if path.read_bytes().startswith(b"\x7fELF")]
    assert found
    assert all(platforms == [str(host)] for platforms in found)


def test_host_platform_names_its_c_library() -> None:
    host = host_platform()
    assert host.os == "linux"
    assert host.libc in ("glibc", "musl")
    assert host.runs_on(host)


# -- ELF


@pytest.mark.parametrize("strings_first", [True, False])
@pytest.mark.parametrize("bits", [32, 64])
@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize(
    ("needed", "libc"),
    [
        ((b"libm.so.6", b"libc.so.6"), "/glibc"),
        ((b"ld-linux-x86-64.so.2",), "/glibc"),
        ((b"libc.musl-x86_64.so.1",), "/musl"),
        ((b"libc.so",), "/musl"),
        ((b"libfoo.so",), ""),
        ((), ""),
    ],
)
def test_libraries_needed_name_the_c_library(
    needed: tuple[bytes, ...], libc: str, order: str, bits: int, *, strings_first: bool
) -> None:
    arch, machine = {(32, "<"): ("ia32", 3), (64, "<"): ("x64", 62), (32, ">"): ("ppc", 20), (64, ">"): ("s390x", 22)}[
        bits, order
    ]
    data = elf(machine=machine, bits=bits, order=order, needed=needed, strings_first=strings_first)
    for size in (1, 3, 64, 100, 10_000):
        assert sniff(data, size) == [f"linux/{arch}{libc}"]


def test_only_names_that_are_pointed_at_count() -> None:
    data = elf(needed=(b"libfoo.so",)) + b"\0libc.so.6\0libc.musl-x86_64.so.1\0ld-linux-x86-64.so.2\0"
    assert sniff(data) == ["linux/x64"]


def test_names_are_found_across_any_distance() -> None:
    for strings_first in (True, False):
        data = elf(needed=(b"libc.so.6",), strings_first=strings_first, filler=300_000)
        for size in (997, 65_536, 1 << 20):
            assert sniff(data, size) == ["linux/x64/glibc"]


def test_loader_names_the_c_library() -> None:
    for interpreter, libc in ((b"/lib64/ld-linux-x86-64.so.2\0", "/glibc"), (b"/lib/ld-musl-x86_64.so.1\0", "/musl")):
        assert sniff(elf(kind=2, interpreter=interpreter)) == [f"linux/x64{libc}"]
    assert sniff(elf(interpreter=b"/system/bin/linker64\0")) == ["android/x64"]


def test_android_libraries_are_not_taken_for_musl() -> None:
    note = struct.pack("<3I", 8, 4, 1) + b"Android\0" + struct.pack("<I", 24)
    assert sniff(elf(machine=183, needed=(b"libc.so",), note=note)) == ["android/arm64"]


def test_program_headers_at_the_end_still_tell_the_c_library() -> None:
    data = elf(needed=(b"libc.so.6",), table_last=True)
    for size in (16, 10_000):
        assert sniff(data, size) == ["linux/x64/glibc"]
    far = elf(needed=(b"libc.so.6",), table_last=True, filler=300_000)
    assert sniff(far, 4096) == ["linux/x64/glibc"]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"machine": 183}, ["linux/arm64"]),
        ({"machine": 40, "bits": 32}, ["linux/arm"]),
        ({"machine": 243}, ["linux/riscv64"]),
        ({"machine": 21, "order": "<"}, ["linux/ppc64"]),
        ({"machine": 258}, ["linux/loong64"]),
        ({"machine": 8, "bits": 32}, ["linux/mipsel"]),
        ({"system": 9}, ["freebsd/x64"]),
        ({"system": 3}, ["linux/x64"]),
        ({"kind": 1}, []),
        ({"kind": 4}, []),
        ({"machine": 190}, []),
        ({"machine": 247}, []),
        ({"system": 200}, []),
    ],
)
def test_machines_kinds_and_systems(options: dict[str, int], expected: list[str]) -> None:
    assert sniff(elf(**options)) == expected  # type: ignore[arg-type]


def test_flood_of_names_costs_neither_time_nor_memory() -> None:
    data = elf(needed=(b"libc.so.6",)) + b"libc.so.6\0" * 1_000_000
    tracemalloc.start()
    assert sniff(data) == ["linux/x64/glibc"]
    assert tracemalloc.get_traced_memory()[1] < 32 << 20
    tracemalloc.stop()


# -- Mach-O and PE


@pytest.mark.parametrize("order", ["<", ">"])
def test_thin_macho_of_both_orders_and_widths(order: str) -> None:
    assert sniff(macho(0x01000007, 6, order)) == ["darwin/x64"]
    assert sniff(macho(0x0100000C, 2, order)) == ["darwin/arm64"]
    assert sniff(macho(7, 8, order, wide=False)) == ["darwin/ia32"]


@pytest.mark.parametrize("file_type", [1, 4, 9, 10, 11])
def test_macho_objects_and_debug_symbols_are_not_native(file_type: int) -> None:
    assert sniff(macho(file_type=file_type)) == []


@pytest.mark.parametrize("wide", [True, False])
def test_universal_binary_has_several_platforms(*, wide: bool) -> None:
    data = fat(macho(0x01000007), macho(0x0100000C), macho(0x0100000C, 10), b"!<arch>\n", wide=wide)
    for size in (1, 4096, 100_000):
        assert sniff(data, size) == ["darwin/arm64", "darwin/x64"]
    far = fat(macho(0x01000007), macho(0x0100000C), wide=wide, gap=200_000)
    assert sniff(far, 65_536) == ["darwin/arm64", "darwin/x64"]


def test_java_class_is_no_universal_binary() -> None:
    assert sniff(b"\xca\xfe\xba\xbe" + struct.pack(">2H", 0, 52) + macho() * 10) == []
    assert sniff(b"\xca\xfe\xba\xbe" + struct.pack(">2H", 3, 45) + bytes(1000)) == []


@pytest.mark.parametrize("machine", [(0x8664, "x64"), (0xAA64, "arm64"), (0x14C, "ia32"), (0x1C4, "arm")])
def test_pe_machines(machine: tuple[int, str]) -> None:
    assert sniff(pe(machine[0])) == [f"win32/{machine[1]}"]
    assert sniff(pe(machine[0], wide=False, start=0x200), 1) == [f"win32/{machine[1]}"]


def test_managed_and_damaged_pe_are_not_native() -> None:
    assert sniff(pe(0x14C, managed=True, wide=False)) == []
    assert sniff(pe(managed=True)) == []
    assert sniff(pe(0x1234)) == []
    assert sniff(b"MZ" + bytes(200)) == []
    assert sniff(b"MZ") == []
    assert sniff(pe()[:100]) == []


# -- anything


@pytest.mark.parametrize(
    "data", [b"", b"\x7f", b"\x7fEL", b"#!/bin/sh\n", b"{}", b"\0asm\1\0\0\0", b"!<arch>\n", bytes(99)]
)
def test_other_files_are_not_native(data: bytes) -> None:
    assert sniff(data) == []
    assert sniff(data, 1) == []


@settings(max_examples=400, deadline=None)
@given(
    start=st.sampled_from(
        [
            elf(needed=(b"libc.so.6",), interpreter=b"/lib/ld-musl-x.so\0"),
            elf(bits=32, machine=3, needed=(b"libc.so.6",)),
            macho(),
            fat(macho(), macho(7), gap=256),
            fat(macho(), wide=True, gap=256),
            pe(),
        ]
    ),
    position=st.integers(4, 400),
    damage=st.binary(min_size=1, max_size=40),
    size=st.integers(1, 500),
    cut=st.integers(0, 2000),
)
def test_damaged_headers_raise_nothing(start: bytes, position: int, damage: bytes, size: int, cut: int) -> None:
    data = bytearray(start)
    data[position : position + len(damage)] = damage
    assert len(sniff(bytes(data[:cut]), size)) <= 3


def test_platforms_are_written_parsed_and_ordered() -> None:
    texts = ["darwin/arm64", "linux/x64", "linux/x64/glibc", "linux/x64/musl", "win32/x64"]
    assert [str(platform) for platform in sorted(map(Platform.parse, reversed(texts)))] == texts
    for text in ("linux", "", "linux/", "a/b/c/d", "linux//glibc", "linux/x 64"):
        with pytest.raises(ValueError, match="not a platform"):
            Platform.parse(text)


@pytest.mark.parametrize(
    ("needs", "host", "runs"),
    [
        ("linux/x64/glibc", "linux/x64/glibc", True),
        ("linux/x64", "linux/x64/musl", True),
        ("linux/x64/musl", "linux/x64/glibc", False),
        ("linux/arm64/glibc", "linux/x64/glibc", False),
        ("darwin/arm64", "linux/arm64/glibc", False),
        ("darwin/arm64", "darwin/arm64", True),
    ],
)
def test_platforms_run_where_all_that_they_need_is(needs: str, host: str, *, runs: bool) -> None:
    assert Platform.parse(needs).runs_on(Platform.parse(host)) is runs
