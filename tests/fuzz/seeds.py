"""`python -m tests.fuzz.seeds`: write the well-formed inputs that all others are made of to `tests/fuzz/corpus/`.

They are kept in the repository, so that a run with the same seed does the same whatever the libraries' versions are. A
folder for each target; what was once found to be wrong is there as well, under a name that begins with `found-`.
"""

import gzip
import io
import json
import tarfile
from collections.abc import Iterator
from pathlib import Path

import zstandard

from tests.unit.archives import (
    GNU,
    by_tarfile,
    directory,
    file,
    gnu_long,
    hardlink,
    header,
    pax,
    symlink,
    tar,
    well_formed,
)
from tests.unit.test_native import elf, fat, macho, pe

CORPUS = Path(__file__).parent / "corpus"

_MANIFEST = {
    "name": "small",
    "version": "1.0.0-rc.1+b",
    "runtime": "node24",
    "entry": "dist/index.js",
    "description": "naïve \u2028 text",
    "capabilities": ["network"],
    "parametersSchema": {"type": "object", "properties": {"hours": {"type": "number", "default": 1.5e2}}},
    "metadata": {"nested": [[[{"deep": None}]], True, -0.0, 12345678901234567890]},
}


def write() -> None:
    """Write every seed; what else is in the corpus stays."""
    for target, seeds in (
        ("tar", _tars()),
        ("archive", _archives()),
        ("manifest", _manifests()),
        ("native", _native()),
    ):
        folder = CORPUS / target
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in seeds:
            (folder / name).write_bytes(content)


def read(target: str) -> dict[str, bytes]:
    """The corpus of a target by file name, in the order of the names."""
    return {path.name: path.read_bytes() for path in sorted((CORPUS / target).iterdir())}


def _tars() -> Iterator[tuple[str, bytes]]:
    tree = [_member("manifest.json", b'{"name": "small"}'), _member("a" * 90 + "/" + "b" * 90, b"long")]
    for name, tar_format in (("ustar", tarfile.USTAR_FORMAT), ("pax", tarfile.PAX_FORMAT), ("gnu", tarfile.GNU_FORMAT)):
        yield f"{name}-by-tarfile", _short(by_tarfile([*tree, *_links(90 if name == "ustar" else 120)], tar_format))
    yield "all-kinds", tar(*well_formed())
    yield "pax-size", tar(pax({"size": "5"}), header("a", size=0) + b"12345".ljust(512, b"\0"), file("b", b"2"))
    yield "pax-global", tar(pax({"comment": "of all"}, b"g"), pax({"path": "x/é", "mtime": "1.5"}), file("y", b"z"))
    yield "pax-link", tar(file("t", b"1"), pax({"linkpath": "./t", "path": "l" * 120}), hardlink("l", "t"))
    yield "gnu-long", tar(gnu_long(b"L", "d/" + "n" * 150), gnu_long(b"K", "t" * 120), symlink("s", "t"), file("z"))
    yield "gnu-base-256", tar(header("a", size=b"\x80" + bytes(10) + b"\x03", magic=GNU) + b"abc".ljust(512, b"\0"))
    yield "sparse-old", tar(header("s", b"S", 0, magic=GNU))
    yield "sparse-pax", tar(pax({"GNU.sparse.major": "1", "GNU.sparse.minor": "0"}), file("GNUSparseFile.0/s", b"0\n"))
    yield "before-posix", tar(header("old/", b"\0", magic=bytes(8)), file("old/f", b"x", kind=b"\0", magic=bytes(8)))
    yield "empty", tar()
    yield "many-directories", tar(*(directory(f"{'d/' * depth}") for depth in range(1, 20)))


def _archives() -> Iterator[tuple[str, bytes]]:
    content = tar(*well_formed())
    halves = content[:2000], content[2000:]
    compressor = zstandard.ZstdCompressor(write_checksum=True)
    yield "gzip", gzip.compress(content, mtime=0)
    yield "gzip-two-members", b"".join(gzip.compress(half, mtime=0) for half in halves)
    named = io.BytesIO()
    with gzip.GzipFile("name.tar", "wb", fileobj=named, mtime=1) as stream:
        stream.write(content)
    yield "gzip-named", named.getvalue()
    yield "gzip-stored", gzip.compress(content[:1536] + bytes(1024), 0, mtime=0)
    yield "zstd", compressor.compress(content)
    yield "zstd-frames", b"".join(compressor.compress(half) for half in halves)
    yield (
        "zstd-skippable",
        b"\x50\x2a\x4d\x18\x04\0\0\0skip" + compressor.compress(content) + b"\x5f\x2a\x4d\x18" + bytes(4),
    )
    unsized = zstandard.ZstdCompressor(level=1, write_content_size=False, write_checksum=False)
    streamed = unsized.compressobj()
    yield (
        "zstd-blocks",
        b"".join(
            [
                *(streamed.compress(half) + streamed.flush(zstandard.COMPRESSOBJ_FLUSH_BLOCK) for half in halves),
                streamed.flush(),
            ]
        ),
    )


def _manifests() -> Iterator[tuple[str, bytes]]:
    yield "full", json.dumps(_MANIFEST).encode()
    yield "full-unescaped", json.dumps(_MANIFEST, ensure_ascii=False, indent=1).encode()
    yield (
        "python",
        json.dumps({"name": "p", "version": "0.1.0", "runtime": "python3", "pythonEntry": "./a.py"}).encode(),
    )
    yield "numbers", b'{"a": [0, -1, 1e308, 1E-400, 0.1, 18446744073709551616], "b": "\\ud83d\\ude00"}'
    yield "nested", b'{"a": ' + b"[" * 60 + b"]" * 60 + b"}"


def _native() -> Iterator[tuple[str, bytes]]:
    yield "elf-glibc", elf(needed=(b"libm.so.6", b"libc.so.6"))
    yield "elf-musl", elf(needed=(b"libc.musl-x86_64.so.1",), strings_first=False, machine=183)
    yield "elf-32", elf(bits=32, machine=40, needed=(b"libc.so.6",), interpreter=b"/lib/ld-linux-armhf.so.3\0")
    yield "elf-big-endian", elf(order=">", machine=22, needed=(b"libc.so.6",))
    yield "elf-android", elf(note=b"\4\0\0\0\4\0\0\0\1\0\0\0Android\0", needed=(b"libc.so",))
    yield "elf-table-last", elf(needed=(b"libc.so.6",), table_last=True, filler=900)
    yield "macho", macho()
    yield "macho-32", macho(7, order=">", wide=False)
    yield "fat", fat(macho(), macho(0x01000007), gap=256)
    yield "fat-64", fat(macho(), wide=True, gap=256)
    yield "pe", pe()
    yield "pe-managed", pe(0x14C, managed=True, wide=False)
    yield "java-class", b"\xca\xfe\xba\xbe\0\0\0\x34" + bytes(64)
    yield "text", b"#!/bin/sh\nexit 0\n"


def _member(name: str, data: bytes) -> tuple[tarfile.TarInfo, bytes]:
    return tarfile.TarInfo(name), data


def _links(length: int) -> list[tuple[tarfile.TarInfo, bytes]]:
    links = []
    for name, kind, target in (("h", tarfile.LNKTYPE, "manifest.json"), ("s", tarfile.SYMTYPE, "x" * length)):
        info = tarfile.TarInfo(name)
        info.type, info.linkname = kind, target
        links.append((info, b""))
    return links


def _short(archive: bytes) -> bytes:
    """Without all but two blocks of the zeros to which tarfile fills a record."""
    return archive.rstrip(b"\0").ljust(-(-len(archive.rstrip(b"\0")) // 512) * 512, b"\0") + bytes(1024)


if __name__ == "__main__":
    write()
