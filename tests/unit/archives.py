"""Archives as bytes, block by block, so that they can be wrong in ways in which no packing program is."""

from __future__ import annotations

import gzip
import io
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field

import zstandard

from libs.common.archive import ArchiveLimits, ArchiveReader, ArchiveTotals, Entry

BLOCK = 512
END = bytes(2 * BLOCK)
USTAR = b"ustar\x0000"
GNU = b"ustar  \0"


def header(
    name: str | bytes,
    kind: bytes = b"0",
    size: int | bytes = 0,
    link: str | bytes = b"",
    *,
    mode: int = 0o644,
    magic: bytes = USTAR,
    prefix: bytes = b"",
    checksum: int | None = None,
) -> bytes:
    """One header block. `size` as bytes is written as it is."""
    block = bytearray(BLOCK)
    name, link = (value.encode() if isinstance(value, str) else value for value in (name, link))
    block[: len(name)] = name
    block[100:124] = b"%07o\0%07o\0%07o\0" % (mode, 0, 0)
    block[124:136] = size.ljust(12, b"\0") if isinstance(size, bytes) else b"%011o\0" % size
    block[136:156] = b"%011o\0" % 0 + b" " * 8
    block[156:157] = kind
    block[157 : 157 + len(link)] = link
    block[257:265] = magic
    block[345 : 345 + len(prefix)] = prefix
    assert len(block) == BLOCK
    block[148:156] = b"%06o\0 " % (sum(block) if checksum is None else checksum)
    return bytes(block)


def padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % BLOCK)


def file(name: str | bytes, data: bytes = b"", **options: object) -> bytes:
    return header(name, size=len(data), **options) + padded(data)  # type: ignore[arg-type]


def directory(name: str) -> bytes:
    return header(name, b"5", mode=0o755)


def symlink(name: str, target: str) -> bytes:
    return header(name, b"2", link=target, mode=0o777)


def hardlink(name: str, target: str) -> bytes:
    return header(name, b"1", link=target)


def pax(records: dict[str, str | bytes], kind: bytes = b"x") -> bytes:
    content = b""
    for key, value in records.items():
        body = b" " + key.encode() + b"=" + (value.encode() if isinstance(value, str) else value) + b"\n"
        length = len(body) + 1
        while len(str(length)) + len(body) != length:
            length += 1
        content += str(length).encode() + body
    return header("PaxHeader", kind, len(content)) + padded(content)


def gnu_long(kind: bytes, value: str) -> bytes:
    content = value.encode() + b"\0"
    return header("././@LongLink", kind, len(content), magic=GNU) + padded(content)


def tar(*members: bytes, end: bytes = END) -> bytes:
    return b"".join(members) + end


def tgz(*members: bytes, end: bytes = END) -> bytes:
    return gzip.compress(tar(*members, end=end), mtime=0)


def tzst(*members: bytes, end: bytes = END) -> bytes:
    return zstandard.ZstdCompressor(write_checksum=True).compress(tar(*members, end=end))


def well_formed() -> tuple[bytes, ...]:
    """A small tree with one of each kind of member."""
    return (
        directory("./"),
        file("./manifest.json", b'{"name": "small", "version": "1.0.0"}'),
        directory("dist/"),
        file("dist/index.js", b"export const handler = () => 1\n" * 40),
        file("bin/run", b"#!/bin/sh\n", mode=0o755),
        hardlink("bin/again", "bin/run"),
        symlink("node_modules/.bin/run", "../../bin/run"),
        directory("outputs/"),
        pax({"path": "deep/" + "x" * 120 + "/naïve.txt"}),
        file("short", b"long"),
    )


def by_tarfile(members: list[tuple[tarfile.TarInfo, bytes]], tar_format: int) -> bytes:
    """What Python's tarfile makes of it: another writer than ours."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tar_format) as archive:
        for info, data in members:
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


@dataclass
class Recorder:
    """An EntrySink that remembers everything and checks the order of the calls."""

    entries: list[Entry] = field(default_factory=list)
    contents: dict[str, bytes] = field(default_factory=dict)
    largest_chunk: int = 0
    _open: Entry | None = None

    def begin(self, entry: Entry) -> None:
        assert self._open is None
        self.entries.append(entry)
        if entry.type == "file":
            self._open = entry
            self.contents[entry.path] = b""

    def data(self, chunk: memoryview) -> None:
        assert self._open is not None
        assert len(chunk)
        self.largest_chunk = max(self.largest_chunk, len(chunk))
        self.contents[self._open.path] += chunk

    def end(self) -> None:
        assert self._open is not None
        assert len(self.contents[self._open.path]) == self._open.size
        self._open = None

    @property
    def paths(self) -> list[str]:
        return [entry.path for entry in self.entries]


def chunks(data: bytes, size: int) -> Iterator[bytes]:
    for start in range(0, len(data), size):
        yield data[start : start + size]


def read(
    archive: bytes, chunk_size: int = 1 << 20, limits: ArchiveLimits | None = None
) -> tuple[Recorder, ArchiveTotals]:
    """Read a whole archive in chunks of `chunk_size`."""
    recorder = Recorder()
    reader = ArchiveReader(recorder, limits)
    for chunk in chunks(archive, chunk_size):
        reader.feed(chunk)
    return recorder, reader.finish()
