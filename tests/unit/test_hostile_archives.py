"""Archives that somebody made to do harm, and damaged ones, all the way to the disk.

What the reader says of each is tested in `test_archive`. Here is what counts in the end: refused with a reason, or
unpacked correctly; nothing outside the directory, no link made, no descriptor and no thread left.
"""

from __future__ import annotations

import gzip
import hashlib
import os
import signal
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import zstandard

from libs.common.archive import ArchiveError, ArchiveErrorCode, ArchiveLimits, Entry, EntryType
from services.runner.extraction import ExtractionError, IntegrityError, TreeExtractor, extract_stream, remove_tree
from tests.unit.archives import (
    GNU,
    chunks,
    directory,
    file,
    gnu_long,
    hardlink,
    header,
    pax,
    symlink,
    tar,
    tgz,
    tzst,
    well_formed,
)

Code = ArchiveErrorCode
Pack = Callable[..., bytes]


def digest_of(archive: bytes) -> str:
    return "sha256:" + hashlib.sha256(archive).hexdigest()


def unpack(
    archive: bytes, destination: Path, *, chunk_size: int = 1 << 16, limits: ArchiveLimits | None = None
) -> None:
    extract_stream(chunks(archive, chunk_size), destination, expected_digest=digest_of(archive), limits=limits)


def files(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def open_descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Path]:
    """Where to unpack to, beside a folder that nothing may touch; nothing but the directory itself may be left."""
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "file").write_text("untouched")
    before = outside.stat().st_mtime_ns, open_descriptors(), threading.active_count()
    destination = tmp_path / "bundle"
    yield destination
    assert (outside.stat().st_mtime_ns, open_descriptors(), threading.active_count()) == before
    assert files(outside) == {"file": b"untouched"}
    remove_tree(destination)
    assert list(tmp_path.iterdir()) == [outside]


@dataclass(frozen=True)
class Hostile:
    """Members that are refused: the reason, and the member that is named."""

    what: str
    members: tuple[bytes, ...]
    code: ArchiveErrorCode
    member: str | None


_BASE_256 = b"\x80".ljust(4, b"\0")
HOSTILE = [
    Hostile("parent", (file("../outside/file", b"x"),), Code.UNSAFE_PATH, "../outside/file"),
    Hostile("parent inside", (file("a/../../outside/file", b"x"),), Code.UNSAFE_PATH, "a/../../outside/file"),
    Hostile("parent by pax", (pax({"path": "../outside/file"}), file("a", b"x")), Code.UNSAFE_PATH, "../outside/file"),
    Hostile("parent by GNU", (gnu_long(b"L", "../outside/file"), file("a", b"x")), Code.UNSAFE_PATH, "../outside/file"),
    Hostile("parent by prefix", (header("outside/file", prefix=b".."),), Code.UNSAFE_PATH, "../outside/file"),
    Hostile("absolute", (file("/tmp/evil", b"x"),), Code.UNSAFE_PATH, "/tmp/evil"),
    Hostile("absolute directory", (directory("//tmp/"),), Code.UNSAFE_PATH, "//tmp/"),
    Hostile("link out", (symlink("l", "../outside"), file("l/file", b"x")), Code.UNSAFE_LINK, "l"),
    Hostile("absolute link", (symlink("l", "/etc"),), Code.UNSAFE_LINK, "l"),
    Hostile(
        "link out by GNU", (gnu_long(b"K", "d/" * 80 + "../" * 90 + "etc"), symlink("l", "x")), Code.UNSAFE_LINK, "l"
    ),
    Hostile("through a link", (symlink("l", "."), file("l/file", b"x")), Code.NOT_A_DIRECTORY, "l/file"),
    Hostile("chain", (symlink("l", "."), symlink("l/m", ".."), file("l/m/outside/file")), Code.NOT_A_DIRECTORY, "l/m"),
    Hostile("chain upwards", (directory("a/b"), symlink("a/u", ".."), symlink("x", "a/u/..")), Code.UNSAFE_LINK, "x"),
    Hostile("link for a directory", (directory("d"), symlink("d", "."), file("d/f")), Code.DUPLICATE_MEMBER, "d"),
    Hostile("directory for a link", (symlink("d", "."), directory("d"), file("d/f")), Code.DUPLICATE_MEMBER, "d"),
    Hostile("hard link out", (hardlink("h", "../outside/file"),), Code.UNSAFE_PATH, "../outside/file"),
    Hostile("absolute hard link", (hardlink("h", "/etc/passwd"),), Code.UNSAFE_PATH, "/etc/passwd"),
    Hostile("hard link to a link", (symlink("s", "x"), hardlink("h", "s")), Code.UNSAFE_LINK, "h"),
    Hostile("hard link to a directory", (directory("d"), hardlink("h", "d")), Code.UNSAFE_LINK, "h"),
    Hostile("hard link to itself", (hardlink("h", "h"),), Code.UNSAFE_LINK, "h"),
    Hostile("character device", (header("null", b"3"),), Code.UNSUPPORTED_MEMBER, "null"),
    Hostile("block device", (header("sda", b"4"),), Code.UNSUPPORTED_MEMBER, "sda"),
    Hostile("FIFO", (header("pipe", b"6"),), Code.UNSUPPORTED_MEMBER, "pipe"),
    Hostile("GNU sparse", (header("s", b"S", magic=GNU),), Code.UNSUPPORTED_MEMBER, "s"),
    Hostile("pax sparse", (pax({"path": "s", "GNU.sparse.major": "1"}), file("s")), Code.UNSUPPORTED_MEMBER, "s"),
    Hostile("negative size", (header("n", size=b"-0000000001"),), Code.CORRUPT, None),
    Hostile("negative size in base 256", (header("n", size=b"\xff" * 12),), Code.CORRUPT, None),
    Hostile("negative size by pax", (pax({"size": "-1"}), file("n")), Code.CORRUPT, None),
    Hostile("huge size", (header("n", size=_BASE_256 + b"\x7f" + bytes(7)),), Code.TOO_LARGE, "n"),
    Hostile("huge size by pax", (pax({"size": "9" * 19}), file("n")), Code.TOO_LARGE, "n"),
    Hostile("huge extended header", (header("x", b"x", size=1 << 30),), Code.CORRUPT, None),
    Hostile("size without data", (header("n", size=1 << 20),), Code.TRUNCATED, "n"),
    Hostile("duplicate", (file("a", b"1"), file("a", b"2")), Code.DUPLICATE_MEMBER, "a"),
    Hostile("duplicate, other words", (file("d/a", b"1"), file("./d//./a", b"2")), Code.DUPLICATE_MEMBER, "d/a"),
    Hostile("below a file", (file("a"), file("a/b")), Code.NOT_A_DIRECTORY, "a/b"),
    Hostile("deep", (pax({"path": "d/" * 200 + "f"}), file("f")), Code.UNSAFE_PATH, "/".join(["d"] * 65)),
    Hostile("NUL", (pax({"path": "a\0b"}), file("f")), Code.UNSAFE_PATH, r"a\x00b"),
    Hostile("second archive", (file("a"), bytes(1024), file("b")), Code.TRAILING_DATA, None),
]


@pytest.mark.parametrize("pack", [tgz, tzst])
@pytest.mark.parametrize("hostile", HOSTILE, ids=lambda hostile: hostile.what)
def test_hostile_archive_is_refused_with_its_reason(place: Path, hostile: Hostile, pack: Pack) -> None:
    with pytest.raises(ArchiveError) as caught:
        unpack(pack(file("first", b"1"), symlink("link", "first"), *hostile.members), place)
    assert caught.value.code is hostile.code
    assert caught.value.member == hostile.member
    assert (hostile.member or "tar") in str(caught.value)
    assert not (place / "link").is_symlink()


def test_names_of_every_kind_are_unpacked(place: Path) -> None:
    long = "/".join(["n" * 200] * 4)
    unpack(
        tgz(
            *(gnu_long(b"L", f"gnu/{long}"), file("short", b"gnu")),
            *(pax({"path": f"pax/{long}"}), file("short", b"pax")),
            *(header("f", size=3, prefix=b"prefix"), b"pre".ljust(512, b"\0")),
            *(file("README", b"upper"), file("readme", b"lower")),
            *(file("café", b"composed"), file("cafe\u0301", b"decomposed")),
            *(file("-rf", b"option"), file("new\nline", b"line"), file("...", b"dots")),
        ),
        place,
    )
    assert files(place) == {
        f"gnu/{long}": b"gnu",
        f"pax/{long}": b"pax",
        "prefix/f": b"pre",
        "README": b"upper",
        "readme": b"lower",
        "café": b"composed",
        "cafe\u0301": b"decomposed",
        "-rf": b"option",
        "new\nline": b"line",
        "...": b"dots",
    }


def test_million_entries_are_refused_before_they_fill_the_disk(place: Path) -> None:
    template = bytearray(symlink("l0000000", "x"))
    blank = sum(template) - sum(template[148:156]) - sum(template[1:8])

    def stream() -> Iterator[bytes]:
        compressor = zlib.compressobj(1, wbits=31)
        for number in range(1_000_000):
            name = b"%07d" % number
            template[1:8] = name
            template[148:156] = b"%06o\0 " % (blank + sum(name) + 8 * 32)
            if data := compressor.compress(template):
                yield data

    with pytest.raises(ArchiveError) as caught:
        extract_stream(stream(), place, expected_digest="sha256:", limits=ArchiveLimits(max_compressed_bytes=2_600_000))
    assert caught.value.code is Code.TOO_MANY_ENTRIES
    assert list(place.iterdir()) == []


@pytest.mark.parametrize("bomb", [gzip.compress(bytes(64 << 20)), zstandard.compress(bytes(1 << 28))])
def test_bomb_is_refused(place: Path, bomb: bytes) -> None:
    with pytest.raises(ArchiveError) as caught:
        unpack(bomb, place)
    assert caught.value.code in (Code.RATIO, Code.TRAILING_DATA)
    assert list(place.iterdir()) == []


def test_file_that_is_a_bomb_stays_small_on_disk(place: Path) -> None:
    with pytest.raises(ArchiveError) as caught:
        unpack(tgz(header("zeros", size=1 << 26), bytes(1 << 26)), place)
    assert caught.value.code is Code.RATIO
    assert (place / "zeros").stat().st_size < 40 << 20


@pytest.mark.parametrize("pack", [tgz, tzst])
def test_truncation_at_every_byte_is_noticed(place: Path, pack: Pack) -> None:
    archive = pack(*well_formed())
    for length in range(len(archive)):
        cut = archive[:length]
        with pytest.raises(ArchiveError):
            unpack(cut, place)
        assert not (place / "node_modules").exists()  # which holds nothing but a link
        remove_tree(place)
        with pytest.raises(IntegrityError):
            extract_stream([cut], place, expected_digest=digest_of(archive), expected_size=len(archive))
        assert not (place / "node_modules").exists()
        remove_tree(place)


@pytest.mark.parametrize("pack", [tgz, tzst])
@pytest.mark.parametrize("tail", [b"x", bytes(512), b"PK\x03\x04"])
def test_trailing_data_is_refused(place: Path, pack: Pack, tail: bytes) -> None:
    with pytest.raises(ArchiveError) as caught:
        unpack(pack(*well_formed()) + tail, place)
    assert caught.value.code is Code.TRAILING_DATA
    assert not (place / "node_modules").exists()


@pytest.mark.parametrize("compress", [gzip.compress, zstandard.compress])
def test_two_members_are_one_archive_or_refused(place: Path, compress: Callable[[bytes], bytes]) -> None:
    stream = tar(*well_formed())
    unpack(compress(stream[:700]) + compress(stream[700:]), place)
    assert (place / "node_modules/.bin/run").read_bytes() == b"#!/bin/sh\n"
    remove_tree(place)
    with pytest.raises(ArchiveError) as caught:
        unpack(compress(stream) * 2, place)
    assert caught.value.code is Code.TRAILING_DATA


def test_link_planted_among_many_files_is_not_followed(place: Path) -> None:
    """Files of one batch are written by two threads: whichever meets it names the member."""
    with TreeExtractor(place) as extractor:
        for number in range(200):
            extractor.begin(Entry(f"f{number}", EntryType.FILE, 4, 0o644))
            extractor.data(memoryview(b"evil"))
            extractor.end()
        (place / "f150").symlink_to("../outside/file")
        with pytest.raises(ExtractionError) as caught:
            extractor.flush()
    assert caught.value.member == "f150"


def test_error_of_the_disk_ends_the_other_threads(place: Path) -> None:
    archive = tgz(*(file(f"d/f{number}", os.urandom(2000)) for number in range(2000)))

    def source() -> Iterator[bytes]:
        for number, chunk in enumerate(chunks(archive, 1 << 16)):
            if number == 20:
                while not (place / "d").exists():  # what came before is being written by another thread
                    time.sleep(0.001)
                (place / "d/f1900").mkdir()
            yield chunk

    with pytest.raises(ExtractionError) as caught:
        extract_stream(source(), place, expected_digest=digest_of(archive))
    assert caught.value.member == "d/f1900"


KILLED = """
import sys, time
from pathlib import Path
from services.runner.extraction import extract_stream
def source(data):
    yield data[: len(data) // 2]
    print("half", flush=True)
    time.sleep(60)
extract_stream(source(Path(sys.argv[1]).read_bytes()), Path(sys.argv[2]), expected_digest="sha256:")
"""


def test_killed_process_leaves_its_directory_and_nothing_else(
    place: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    archive = tmp_path_factory.mktemp("archive") / "a.tgz"
    archive.write_bytes(tgz(*(file(f"d/f{number}", os.urandom(5000)) for number in range(1000)), symlink("l", "d")))
    with subprocess.Popen(
        [sys.executable, "-c", KILLED, str(archive), str(place)],
        stdout=subprocess.PIPE,
        text=True,
        env={"PYTHONPATH": str(Path(__file__).parents[2]), "TMPDIR": str(place.parent), "PATH": os.environ["PATH"]},
    ) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "half\n"
        child.send_signal(signal.SIGKILL)
    assert child.returncode == -signal.SIGKILL
    assert not (place / "l").is_symlink()
