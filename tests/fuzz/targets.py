"""What is fed, and what must hold of every input whatever is in it."""

import io
import json
import random
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from typing import Self

from libs.common.archive import ArchiveError, ArchiveLimits, ArchiveReader, EntryType, TarParser
from libs.common.archive.paths import path_parts
from libs.common.errors import StowageError
from libs.common.manifest import read_manifest
from libs.common.native import NativeSniffer
from services.registry.inspection import ManifestError, UploadInspection, parse_manifest
from tests.fuzz import mutation
from tests.unit.archives import BLOCK, Recorder

LIMITS = ArchiveLimits(max_compressed_bytes=1 << 20, max_unpacked_bytes=8 << 20, max_entries=500, max_path_depth=30)
"""Small ones, so that inputs of some KiB come to them."""

_POSIX = b"ustar\0"
_EXTENDED = b"xgLK"


@dataclass(frozen=True)
class Target:
    """Something that reads what strangers send: `check` asserts what must hold of it, `mutate` makes inputs for it."""

    name: str
    check: Callable[[bytes], bool]
    mutate: mutation.Mutator


def tar_stream(data: bytes) -> bool:
    """Whether the parser takes it. What it takes, Python's tarfile must read as the same members with equal bytes."""
    whole, error = _parse(data, [len(data)])
    pieces, same = _parse(data, _steps(data))
    assert _outcome(whole, error) == _outcome(pieces, same), "the pieces make a difference"
    if error is not None:
        return False
    _compare_with_tarfile(data, whole)
    return True


def archive(data: bytes) -> bool:
    """Whether an upload of it passes as a tarball. In what pieces it comes makes no difference."""
    outcomes = []
    for steps in ([len(data)], _steps(data)):
        recorder = Recorder()
        reader = ArchiveReader(recorder, LIMITS)
        error = None
        try:
            for piece in _cut(data, steps):
                reader.feed(piece)
            totals = reader.finish()
            assert totals.unpacked_bytes <= totals.stream_bytes <= LIMITS.max_unpacked_bytes
        except ArchiveError as refused:
            error = refused
        assert len(recorder.entries) <= LIMITS.max_entries
        outcomes.append(_outcome(recorder, error))
    assert outcomes[0] == outcomes[1], "the pieces make a difference"
    _inspect(data)
    return outcomes[0][0] is None


def manifest(data: bytes) -> bool:
    """Whether it is a manifest. What is taken can be stored, and is what any reader of JSON sees."""
    try:
        parsed = parse_manifest(data)
    except ManifestError:
        return False
    assert parsed == json.loads(data)
    text = json.dumps(parsed, ensure_ascii=False, allow_nan=False)
    assert "\0" not in text
    assert json.loads(text.encode()) == parsed
    try:
        made = read_manifest(parsed)
    except StowageError as error:
        json.dumps(error.details, ensure_ascii=False).encode()
        error.message.encode()
        return False
    assert ".." not in made.entry.split("/")
    assert not made.entry.startswith("/")
    return True


def native(data: bytes) -> bool:
    """Whether it is native code for something."""
    found = []
    for steps in ([len(data)], _steps(data)):
        sniffer = NativeSniffer()
        for piece in _cut(data, steps):
            sniffer.feed(memoryview(piece))
        found.append(sorted(map(str, sniffer.finish())))
    assert len(found[0]) <= 44
    return bool(found[0])


TARGETS = {
    target.name: target
    for target in (
        Target("tar", tar_stream, mutation.tar_stream),
        Target("archive", archive, mutation.archive),
        Target("manifest", manifest, mutation.manifest),
        Target("native", native, mutation.native),
    )
}


def _inspect(data: bytes) -> None:
    inspection = UploadInspection(LIMITS)
    try:
        inspection.feed(data)
        found = inspection.finish()
    except (ArchiveError, ManifestError) as error:
        str(error).encode()
        return
    assert found.size == len(data)


def _parse(data: bytes, steps: list[int]) -> tuple[Recorder, ArchiveError | None]:
    recorder = Recorder()
    parser = TarParser(recorder, LIMITS)
    try:
        for piece in _cut(data, steps):
            parser.feed(piece)
        parser.finish()
    except ArchiveError as error:
        str(error).encode()
        return recorder, error
    return recorder, None


def _outcome(recorder: Recorder, error: ArchiveError | None) -> tuple[object, ...]:
    """What must not depend on the pieces. An archive that is damaged twice may be refused for the one or the other."""
    if error is not None:
        return ("refused",)
    return None, recorder.entries, recorder.contents


def _steps(data: bytes) -> list[int]:
    """Sizes of pieces, the same for the same input."""
    draw = random.Random(len(data) * 31 + sum(data[:64]))  # noqa: S311
    return [draw.choice((1, 3, 100, 511, 512, 513, 4000)) for _ in range(64)]


def _cut(data: bytes, steps: list[int]) -> list[bytes]:
    pieces, position = [], 0
    for step in steps:
        pieces.append(data[position : position + step])
        position += step
    return [*pieces, data[position:]]


class _Header(tarfile.TarInfo):
    """A header as tarfile reads it, but for three things in which GNU tar, bsdtar and we differ from it.

    Owners, times and device numbers say nothing of the member, nor do permissions of an extended header: nonsense there
    does not make it unreadable. Archives of
    GNU tar and those before POSIX have no prefix: something else is in its place. And whether a slash at the end of a
    regular file's name makes it a directory is seen when its name is known, which an extended header may give.
    """

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        header = bytearray(buf)
        if len(header) == BLOCK and any(header):
            for start, length in ((108, 16), (136, 12), (329, 16)):
                header[start : start + length] = bytes(length)
            if header[156] in _EXTENDED:
                header[100:108] = bytes(8)
            if header[257:263] != _POSIX:
                header[345:500] = bytes(155)
            if not header[156]:
                header[156:157] = tarfile.REGTYPE
            header[148:156] = b" " * 8  # what it should be the parser has seen to
            header[148:156] = b"%06o\0 " % sum(header)
        return super().frombuf(bytes(header), encoding, errors)


def _compare_with_tarfile(data: bytes, recorder: Recorder) -> None:
    with tarfile.open(
        fileobj=io.BytesIO(data), mode="r:", tarinfo=_Header, encoding="utf-8", errors="surrogateescape"
    ) as archive:
        members = [member for member in archive.getmembers() if _path(member.name)]
        assert [(_path(member.name), member.size) for member in members] == [
            (entry.path, entry.size) for entry in recorder.entries
        ]
        for member, entry in zip(members, recorder.entries, strict=True):
            if entry.type is EntryType.FILE:
                stream = archive.extractfile(member)
                assert stream is not None
                assert stream.read() == recorder.contents[entry.path]
            elif entry.type is EntryType.DIRECTORY:
                assert member.isdir() or (member.isreg() and not member.size)
            elif entry.type is EntryType.SYMLINK:
                assert member.issym()
                assert member.linkname.rstrip("/") == (entry.link_target or "").rstrip("/")
            else:
                assert member.islnk()
                assert _path(member.linkname) == entry.link_target


def _path(name: str) -> str:
    return "/".join(path_parts(name))
