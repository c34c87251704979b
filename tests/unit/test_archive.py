"""The archive reader: what it takes, and everything it refuses."""

from __future__ import annotations

import gzip
import struct
import subprocess
import tarfile
import tempfile
import tracemalloc
import zlib
from pathlib import Path
from typing import Any

import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from libs.common.archive import ArchiveError, ArchiveErrorCode, ArchiveLimits, ArchiveReader, EntryType
from libs.common.archive import compression as archive_compression
from libs.common.archive.compression import MAX_WINDOW_BYTES, PIECE_BYTES
from tests.unit.archives import (
    BLOCK,
    END,
    GNU,
    Recorder,
    by_tarfile,
    chunks,
    directory,
    file,
    gnu_long,
    hardlink,
    header,
    padded,
    pax,
    read,
    symlink,
    tar,
    tgz,
    tzst,
    well_formed,
)

Code = ArchiveErrorCode


def refusal(archive: bytes, limits: ArchiveLimits | None = None, chunk_size: int = 1 << 20) -> ArchiveError:
    with pytest.raises(ArchiveError) as caught:
        read(archive, chunk_size, limits)
    assert str(caught.value).endswith(".")
    return caught.value


# -- what is read


@pytest.mark.parametrize("pack", [tgz, tzst])
def test_well_formed_archive_is_read_in_order(pack: Any) -> None:
    recorder, totals = read(pack(*well_formed()))
    long = "deep/" + "x" * 120 + "/naïve.txt"
    assert [(entry.path, entry.type) for entry in recorder.entries] == [
        ("manifest.json", "file"),
        ("dist", "directory"),
        ("dist/index.js", "file"),
        ("bin/run", "file"),
        ("bin/again", "hardlink"),
        ("node_modules/.bin/run", "symlink"),
        ("outputs", "directory"),
        (long, "file"),
    ]
    by_path = {entry.path: entry for entry in recorder.entries}
    assert by_path["bin/run"].executable
    assert not by_path["manifest.json"].executable
    assert by_path["bin/again"].link_target == "bin/run"
    assert by_path["node_modules/.bin/run"].link_target == "../../bin/run"
    assert recorder.contents[long] == b"long"
    assert totals.entries == 9
    assert totals.unpacked_bytes == sum(map(len, recorder.contents.values()))
    assert totals.stream_bytes == len(tar(*well_formed()))
    assert totals.compressed_bytes == len(pack(*well_formed()))


@pytest.mark.parametrize("pack", [tgz, tzst])
def test_chunking_makes_no_difference(pack: Any) -> None:
    archive = pack(*well_formed())
    expected = read(archive)
    for size in range(1, len(archive) + 1):
        recorder, totals = read(archive, size)
        assert (recorder.entries, recorder.contents, totals) == (expected[0].entries, expected[0].contents, expected[1])


@pytest.mark.parametrize("tar_format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_long_names_of_every_format_are_read(tar_format: int) -> None:
    path = "a" * 90 + "/" + "b" * 90
    link = tarfile.TarInfo("c" * 80 + "/link")
    link.type, link.linkname = tarfile.SYMTYPE, "d" * (90 if tar_format == tarfile.USTAR_FORMAT else 150)
    archive = by_tarfile([(tarfile.TarInfo(path), b"1"), (link, b"")], tar_format)
    recorder, _ = read(gzip.compress(archive))
    assert recorder.paths == [path, link.name]
    assert recorder.entries[1].link_target == link.linkname


def test_gnu_long_names_apply_to_one_member() -> None:
    recorder, _ = read(
        tgz(gnu_long(b"L", "long/name"), gnu_long(b"K", "../target"), header("x", b"2", link="y"), file("next", b"2"))
    )
    assert [(entry.path, entry.link_target) for entry in recorder.entries] == [
        ("long/name", "../target"),
        ("next", None),
    ]


def test_pax_size_overrides_the_header() -> None:
    data = b"x" * 700
    member = pax({"size": "700"}) + header("big", size=0) + padded(data)
    recorder, _ = read(tgz(member, file("next", b"n")))
    assert recorder.contents == {"big": data, "next": b"n"}


def test_global_pax_header_may_say_what_does_not_matter() -> None:
    comment = pax({"comment": "0123"}, b"g")
    recorder, _ = read(tgz(comment, file("a", b"1"), comment, file("b", b"abc")))
    assert recorder.contents == {"a": b"1", "b": b"abc"}


@pytest.mark.parametrize(
    "members",
    [
        (pax({"size": "3"}, b"g"), header("b") + padded(b"abc")),
        (pax({"path": "all"}, b"g"), file("b")),
        (file("a"), pax({"comment": "of nothing"}, b"g")),
        (pax({"path": ""}), file("a")),
        (pax({"linkpath": ""}), symlink("a", "b")),
        (pax({"size": ""}), file("a")),
        (gnu_long(b"L", ""), file("a")),
        (header("././@LongLink", b"L", 3, magic=GNU) + padded(b"long, but only three bytes of it count"), file("a")),
    ],
)
def test_what_programs_read_differently_is_refused(members: tuple[bytes, ...]) -> None:
    assert refusal(tgz(*members)).code is Code.CORRUPT


def test_base_256_sizes_are_read() -> None:
    size = b"\x80" + (5).to_bytes(11, "big")
    recorder, _ = read(tgz(header("a", size=size) + padded(b"12345")))
    assert recorder.contents == {"a": b"12345"}


@pytest.mark.parametrize("kind", [b"0", b"\0", b"7"])
def test_all_kinds_of_regular_files_are_files(kind: bytes) -> None:
    recorder, _ = read(tgz(header("a", kind, 3) + padded(b"abc"), header("old/", kind)))
    assert recorder.contents == {"a": b"abc"}
    assert [entry.type for entry in recorder.entries] == [EntryType.FILE, EntryType.DIRECTORY]


def test_paths_are_normalised() -> None:
    recorder, _ = read(tgz(file("./a//b/./c", b"1"), directory("a/d//"), file(".//e"), file("././f"), directory(".")))
    assert recorder.paths == ["a/b/c", "a/d", "e", "f"]


def test_prefix_is_read_in_posix_archives_only() -> None:
    assert read(tgz(file("b", prefix=b"a")))[0].paths == ["a/b"]
    assert read(tgz(file("b", prefix=b"1234", magic=GNU)))[0].paths == ["b"]


def test_names_that_differ_in_case_are_different() -> None:
    assert read(tgz(file("README"), file("readme"), file("Dir/a"), file("dir/a")))[0].paths == [
        "README",
        "readme",
        "Dir/a",
        "dir/a",
    ]


def test_directories_may_repeat() -> None:
    assert read(tgz(directory("a/"), file("a/b"), directory("a"), directory("./a/")))[0].paths == ["a", "a/b", "a", "a"]


def test_signed_and_non_ascii_checksums_are_accepted() -> None:
    name = "ä" * 9
    block = header(name)
    signed = sum(byte - 256 if byte > 127 else byte for byte in block[:148] + b" " * 8 + block[156:])
    assert read(tgz(block))[0].paths == [name]
    assert read(tgz(header(name, checksum=signed)))[0].paths == [name]


def test_checksum_beyond_the_modulus_of_adler_is_compared() -> None:
    block = header("a" * 100, link="\xff" * 50, magic=GNU, prefix=b"\xff" * 155)
    full = bytearray(block)
    full[265:345] = b"\xff" * 80
    full[500:512] = b"\xff" * 12
    full[157:257] = b"\xff" * 100
    full[148:156] = b" " * 8
    total = sum(full)
    assert total > 65521
    for stored, good in ((total, True), (total + 1, False), (total - 1, False), (total - 65536, False)):
        full[148:156] = b"%06o\0 " % stored
        archive = gzip.compress(bytes(full) + END)
        if good:
            assert read(archive)[0].paths == ["a" * 100]
        else:
            assert refusal(archive).code is Code.CORRUPT


# -- compression


def test_gzip_members_are_joined() -> None:
    stream = tar(*well_formed())
    for cut in (1, 511, 512, 700, len(stream) - 1):
        archive = gzip.compress(stream[:cut]) + gzip.compress(stream[cut:]) + gzip.compress(b"")
        for size in (1, 7, 10_000):
            assert read(archive, size)[0].contents == read(tgz(*well_formed()))[0].contents


def test_gzip_header_fields_may_be_split_anywhere() -> None:
    stream = tar(file("a", b"1"))
    compressor = zlib.compressobj(9, zlib.DEFLATED, -15)
    body = compressor.compress(stream) + compressor.flush()
    start = b"\x1f\x8b\x08\x1e" + bytes(6) + struct.pack("<H", 300) + b"x" * 300 + b"name\0" + b"comment" * 20 + b"\0"
    start += struct.pack("<H", zlib.crc32(start) & 0xFFFF)
    archive = start + body + struct.pack("<II", zlib.crc32(stream), len(stream))
    for size in range(1, len(archive) + 1):
        assert read(archive, size)[0].contents == {"a": b"1"}
    broken = archive[: len(start) - 1] + bytes([archive[len(start) - 1] ^ 1]) + archive[len(start) :]
    assert refusal(broken).code is Code.CORRUPT


def test_zstd_frames_and_skippable_frames_are_joined() -> None:
    stream = tar(*well_formed())
    skippable = b"\x53\x2a\x4d\x18" + struct.pack("<I", 5) + b"12345"
    empty = b"\x50\x2a\x4d\x18" + bytes(4)
    plain = zstandard.ZstdCompressor(write_checksum=False, write_content_size=False)
    checked = zstandard.ZstdCompressor(write_checksum=True)
    for cut in (1, 600, len(stream) - 1):
        archive = skippable + plain.compress(stream[:cut]) + empty + checked.compress(stream[cut:]) + skippable
        for size in (1, 5, 10_000):
            assert read(archive, size)[0].contents == read(tgz(*well_formed()))[0].contents


def test_zstd_blocks_of_all_kinds_in_all_chunks() -> None:
    noise = bytes((i * i * 7 + i // 3) & 255 for i in range(300_000))
    members = (file("zeros", bytes(600_000)), file("noise", noise), file("text", b"abcdefg " * 50_000))
    stream = tar(*members)
    for level in (-5, 3, 19):
        compressor = zstandard.ZstdCompressor(level=level).compressobj()
        archive = compressor.compress(stream) + compressor.flush()
        for size in (997, 65_536, len(archive)):
            assert read(archive, size)[0].contents["noise"] == noise


@pytest.mark.parametrize("pack", [tgz, tzst])
def test_truncation_at_every_byte_is_refused(pack: Any) -> None:
    archive = pack(*well_formed())
    for length in range(len(archive)):
        error = refusal(archive[:length])
        assert error.code is (Code.EMPTY if not length else Code.TRUNCATED), length


def test_truncated_zstd_without_checksum_is_refused() -> None:
    archive = zstandard.ZstdCompressor(write_checksum=False).compress(tar(*well_formed()))
    for length in range(1, len(archive)):
        assert refusal(archive[:length]).code is Code.TRUNCATED


@pytest.mark.parametrize("pack", [tgz, tzst])
def test_flipped_bit_changes_nothing_unnoticed(pack: Any) -> None:
    archive = pack(*well_formed())
    expected = read(archive)
    for position in range(4, len(archive)):
        flipped = bytearray(archive)
        flipped[position] ^= 0x10
        try:
            found = read(bytes(flipped), 64)
        except ArchiveError:
            continue
        # Some bits do not matter: the time in a gzip header, or how far back among zeros a match reaches.
        assert (found[0].entries, found[0].contents) == (expected[0].entries, expected[0].contents)


@pytest.mark.parametrize("pack", [tgz, tzst])
@pytest.mark.parametrize("tail", [b"x", b"\0", bytes(512), b"\x1f", b"\x1f\x8c", b"\x28\xb5\x2f", b"trailing data"])
def test_trailing_bytes_are_refused(pack: Any, tail: bytes) -> None:
    for size in (1, 100_000):
        assert refusal(pack(*well_formed()) + tail, chunk_size=size).code in (Code.TRAILING_DATA, Code.TRUNCATED)


def test_zeros_after_the_end_marker_are_fine_and_data_is_not() -> None:
    read(tgz(file("a"), end=END + bytes(20 * BLOCK)))
    for tail in (b"x", bytes(700) + b"x", file("hidden", b"data")):
        assert refusal(tgz(file("a"), end=END + tail)).code is Code.TRAILING_DATA


def test_missing_end_marker_is_refused() -> None:
    assert refusal(tgz(file("a"), end=b"")).code is Code.MISSING_END
    assert refusal(tgz(file("a"), end=bytes(BLOCK))).code is Code.MISSING_END
    assert refusal(gzip.compress(b"")).code is Code.MISSING_END
    assert refusal(tgz(file("a"), end=bytes(BLOCK) + file("b") + END)).code is Code.CORRUPT


def test_tar_cut_before_compression_is_refused() -> None:
    stream = tar(*well_formed())
    for length in range(0, len(stream) - 2 * BLOCK, 100):
        assert refusal(gzip.compress(stream[:length], 1)).code in (Code.TRUNCATED, Code.MISSING_END)


@pytest.mark.parametrize(
    "data", [b"PK\x03\x04" + bytes(100), b"BZh91AY", b"\xfd7zXZ\0", tar(file("a")), b"{}", b"x", b"<html>", bytes(100)]
)
def test_other_formats_are_refused(data: bytes) -> None:
    for size in (1, 1000):
        assert refusal(data, chunk_size=size).code is Code.UNSUPPORTED_COMPRESSION


def test_compressed_data_that_is_no_tar_is_refused() -> None:
    assert refusal(gzip.compress(b"not a tar archive" * 100)).code is Code.CORRUPT


def test_zstd_window_is_bounded() -> None:
    parameters = zstandard.ZstdCompressionParameters(window_log=27, write_content_size=0)
    compressor = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    archive = compressor.compress(tar(file("a"))) + compressor.flush()
    assert refusal(archive).code is Code.WINDOW_TOO_LARGE
    assert MAX_WINDOW_BYTES == 1 << 25


def test_zstd_dictionary_is_refused() -> None:
    samples: list[bytes | bytearray | memoryview] = [f"member number {i} of {i * 7}".encode() * 3 for i in range(2000)]
    dictionary = zstandard.train_dictionary(4096, samples)
    archive = zstandard.ZstdCompressor(dict_data=dictionary).compress(tar(file("a")))
    assert dictionary.dict_id()
    assert refusal(archive).code is Code.UNSUPPORTED_COMPRESSION


# -- bounds


def test_bomb_is_refused_with_flat_memory() -> None:
    for bomb in (gzip.compress(bytes(200 << 20)), zstandard.compress(bytes(1 << 30))):
        tracemalloc.start()
        error = refusal(bomb)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert error.code in (Code.RATIO, Code.TRAILING_DATA)
        assert peak < 24 << 20, peak


def test_file_of_zeros_is_a_bomb_whatever_the_chunks() -> None:
    archive = tgz(header("zeros", size=40 << 20) + bytes(40 << 20))
    for size in (1000, 65_536, 1 << 20):
        assert refusal(archive, chunk_size=size).code is Code.RATIO
    read(archive, limits=ArchiveLimits(max_ratio=2000))


def test_small_archives_may_have_any_ratio() -> None:
    read(tgz(header("zeros", size=8 << 20) + bytes(8 << 20)))


def test_data_comes_in_bounded_pieces() -> None:
    for pack in (tgz, tzst):
        recorder, _ = read(pack(header("zeros", size=15 << 20) + bytes(15 << 20)))
        assert recorder.largest_chunk <= PIECE_BYTES + 128 * 1024


def test_limits_hold_exactly() -> None:
    archive = tgz(file("a", b"1" * 5000), file("b"))
    size = len(tar(file("a", b"1" * 5000), file("b")))
    read(archive, limits=ArchiveLimits(max_compressed_bytes=len(archive), max_unpacked_bytes=size, max_entries=2))
    for limits, code in (
        (ArchiveLimits(max_compressed_bytes=len(archive) - 1), Code.TOO_LARGE),
        (ArchiveLimits(max_unpacked_bytes=size - 1), Code.TOO_LARGE),
        (ArchiveLimits(max_entries=1), Code.TOO_MANY_ENTRIES),
        (ArchiveLimits(max_total_path_bytes=1), Code.TOO_LARGE),
    ):
        assert refusal(archive, limits).code is code


def test_size_beyond_the_limit_is_refused_before_the_data() -> None:
    for size in (b"\x80" + (1 << 60).to_bytes(11, "big"), b"77777777777\0", b"\x80" + b"\xff" * 11):
        error = refusal(tgz(header("huge", size=size)), ArchiveLimits(max_unpacked_bytes=1 << 20))
        assert error.code is Code.TOO_LARGE
        assert error.member == "huge"


def test_implied_directories_count_as_entries() -> None:
    assert refusal(tgz(file("a/b/c/d/e")), ArchiveLimits(max_entries=4)).code is Code.TOO_MANY_ENTRIES
    read(tgz(file("a/b/c/d/e")), limits=ArchiveLimits(max_entries=5))


def test_many_entries_are_refused_at_the_limit() -> None:
    archive = tgz(*(header(f"f{i}") for i in range(2001)))
    assert refusal(archive, ArchiveLimits(max_entries=2000)).code is Code.TOO_MANY_ENTRIES
    assert read(archive, limits=ArchiveLimits(max_entries=2001))[1].entries == 2001


def test_depth_and_length_of_paths_are_bounded() -> None:
    def named(path: str) -> bytes:
        return tgz(pax({"path": path}) + header("x"))

    read(named("/".join("d" * 64)))
    assert refusal(named("/".join("d" * 65))).code is Code.UNSAFE_PATH
    read(named("/".join(["n" * 255] * 4)))
    assert refusal(named("/".join(["n" * 255] * 4) + "n")).code is Code.UNSAFE_PATH
    assert refusal(named("n" * 256)).code is Code.UNSAFE_PATH
    assert refusal(named("n" * 256 + "/x")).code is Code.UNSAFE_PATH
    assert refusal(named("ä" * 128)).code is Code.UNSAFE_PATH
    read(named("ä" * 127))


def test_many_empty_zstd_blocks_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive_compression, "MAX_BLOCKS", 5000)
    frame = b"\x28\xb5\x2f\xfd\x00\x58" + bytes(3 * 5000)
    assert refusal(frame).code is Code.TRUNCATED
    assert refusal(frame + bytes(3)).code is Code.TOO_MANY_FRAMES


def test_many_gzip_members_and_zstd_frames_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive_compression, "MAX_FRAMES", 5000)
    for pack, empty in ((tgz, gzip.compress(b"")), (tzst, zstandard.compress(b"")), (tzst, b"P*M\x18" + bytes(4))):
        read(empty * 4999 + pack(file("a")))
        assert refusal(empty * 5000 + pack(file("a"))).code is Code.TOO_MANY_FRAMES


# -- members


@pytest.mark.parametrize(
    "path",
    ["../a", "a/../b", "a/..", "..", "/a", "//a", "a/../../b", "./../a", ".//../a"],
)
def test_paths_out_of_the_bundle_are_refused(path: str) -> None:
    for archive in (tgz(directory("a"), file(path, b"x")), tgz(pax({"path": path}) + header("ok", size=0))):
        assert refusal(archive).code is Code.UNSAFE_PATH


@pytest.mark.parametrize("raw", [b"\xff\xfe", b"caf\xe9", b"\xed\xa0\x80", b"\xc0\xaf"])
def test_names_that_are_not_utf8_are_refused(raw: bytes) -> None:
    assert refusal(tgz(file(raw))).code is Code.UNSAFE_PATH
    assert refusal(tgz(pax({"path": raw}) + header("x"))).code is Code.UNSAFE_PATH


def test_empty_names_and_nul_are_refused() -> None:
    assert refusal(tgz(directory("/"))).code is Code.UNSAFE_PATH
    assert refusal(tgz(file(""))).code is Code.UNSAFE_PATH
    assert refusal(tgz(file("."))).code is Code.UNSAFE_PATH
    assert refusal(tgz(symlink("./", "a"))).code is Code.UNSAFE_PATH
    assert refusal(tgz(pax({"path": "a\0b"}) + header("x"))).code is Code.UNSAFE_PATH
    assert refusal(tgz(pax({"linkpath": "a\0b"}) + symlink("x", "y"))).code is Code.UNSAFE_PATH


@pytest.mark.parametrize(
    ("kind", "word"),
    [(b"3", "character device"), (b"4", "block device"), (b"6", "FIFO"), (b"S", "sparse"), (b"D", "dump"),
     (b"M", "multi-volume"), (b"V", "label"), (b"Z", "unknown"), (b"\xff", "unknown")],
)  # fmt: skip
def test_members_that_are_no_files_are_refused_with_their_reason(kind: bytes, word: str) -> None:
    error = refusal(tgz(header("dev/thing", kind)))
    assert error.code is Code.UNSUPPORTED_MEMBER
    assert word in str(error)
    assert "dev/thing" in str(error)
    assert error.member == "dev/thing"


@pytest.mark.parametrize("records", [{"GNU.sparse.major": "1", "GNU.sparse.minor": "0"}, {"GNU.sparse.map": "0,1"}])
def test_sparse_files_of_pax_are_refused(records: dict[str, str | bytes]) -> None:
    for kind in (b"x", b"g"):
        assert refusal(tgz(pax(records, kind) + header("x"))).code is Code.UNSUPPORTED_MEMBER


def test_real_sparse_file_is_refused(tmp_path: Path) -> None:
    with (tmp_path / "sparse").open("wb") as sparse:
        sparse.truncate(1 << 20)
    for tar_format in ("gnu", "pax"):
        archive = tmp_path / "a.tgz"
        subprocess.run(
            ["tar", f"--format={tar_format}", "--sparse", "-czf", archive, "-C", tmp_path, "sparse"], check=True
        )
        assert refusal(archive.read_bytes()).code is Code.UNSUPPORTED_MEMBER


@pytest.mark.parametrize(
    "size", [b"\xff" * 12, b"-1", b"-0000000001\0", b"12345x", b"0o17", b"1_0", b"99", b"+7", b"\xc0" + bytes(11)]
)
def test_sizes_that_are_no_numbers_are_refused(size: bytes) -> None:
    assert refusal(tgz(header("a", size=size) + bytes(BLOCK))).code is Code.CORRUPT


@pytest.mark.parametrize("size", ["-1", "1e3", "0x10", "9" * 30, " 1", "1 "])
def test_pax_sizes_that_are_no_numbers_are_refused(size: str) -> None:
    assert refusal(tgz(pax({"size": size}) + header("a"))).code is Code.CORRUPT


@pytest.mark.parametrize("kind", [b"1", b"2", b"5"])
def test_links_and_directories_with_data_are_refused(kind: bytes) -> None:
    member = header("b", kind, 3, link="a") + padded(b"abc")
    assert refusal(tgz(file("a"), member)).code is Code.UNSUPPORTED_MEMBER


def test_wrong_checksum_is_refused() -> None:
    assert refusal(tgz(header("a", checksum=1234))).code is Code.CORRUPT


@pytest.mark.parametrize(
    "content",
    [b"garbage\n", b"5 a=\n", b"100 path=x\n", b"8 path=x\n", b"0 path=x\n", b"-1 path=x\n", b"9 path=x1", b"6 =a b\n",
     b"10 path:xx\n", b"99999999999 path=x\n"],
)  # fmt: skip
def test_malformed_pax_headers_are_refused(content: bytes) -> None:
    archive = tgz(header("p", b"x", len(content)) + padded(content), header("a"))
    if content == b"5 a=\n":
        read(archive)
    else:
        assert refusal(archive).code is Code.CORRUPT


def test_extended_headers_are_bounded_and_belong_to_a_member() -> None:
    assert refusal(tgz(header("p", b"x", 2 << 20) + bytes(2 << 20))).code is Code.CORRUPT
    assert refusal(tgz(header("p", b"L", 1 << 32))).code is Code.CORRUPT
    assert refusal(tgz(pax({"path": "a"}))).code is Code.CORRUPT
    assert refusal(tgz(pax({"mtime": "1"}))).code is Code.CORRUPT
    assert refusal(tgz(pax({"path": "a"}), end=b"")).code is Code.TRUNCATED


def test_two_names_for_one_member_are_refused() -> None:
    assert refusal(tgz(pax({"mtime": "1"}), pax({"mtime": "2"}), header("c"))).code is Code.CORRUPT
    read(tgz(gnu_long(b"L", "a"), gnu_long(b"K", "b"), pax({"mtime": "2"}), header("c", b"2")))
    assert refusal(tgz(pax({"path": "a"}), pax({"path": "b"}), header("c"))).code is Code.CORRUPT
    assert refusal(tgz(gnu_long(b"L", "a"), pax({"path": "b"}), header("c"))).code is Code.CORRUPT
    assert refusal(tgz(gnu_long(b"L", "a"), gnu_long(b"L", "b"), header("c"))).code is Code.CORRUPT


@pytest.mark.parametrize(
    "members",
    [
        (file("a"), file("a")),
        (file("a"), file("./a")),
        (file("d/a"), file("d//a")),
        (file("a"), symlink("a", "b")),
        (symlink("a", "b"), file("a")),
        (symlink("a", "b"), symlink("a", "c")),
        (file("a"), hardlink("b", "a"), file("b")),
        (directory("a"), file("a")),
        (file("a/b"), file("a")),
        (file("a/b"), symlink("a", "c")),
        (file("a"), directory("a")),
        (symlink("a", "b"), directory("a")),
    ],
)
def test_duplicates_are_refused(members: tuple[bytes, ...]) -> None:
    assert refusal(tgz(*members)).code is Code.DUPLICATE_MEMBER


@pytest.mark.parametrize("first", [file("a"), symlink("a", "b"), file("z") + hardlink("a", "z")])
@pytest.mark.parametrize("second", [file("a/b"), directory("a/b/"), file("a/b/c"), symlink("a/b", "c"), file("a/./b")])
def test_nothing_lies_below_what_is_no_directory(first: bytes, second: bytes) -> None:
    error = refusal(tgz(first, second))
    assert error.code is Code.NOT_A_DIRECTORY


# -- links


@pytest.mark.parametrize(
    ("path", "target"),
    [("a", "b"), ("d/a", "../b"), ("d/e/a", "../../b"), ("d/a", ".."), ("a", "."), ("a", "d/./b/"), ("d/a", "./../b"),
     ("node_modules/.bin/tsc", "../typescript/bin/tsc"), ("a", "missing"), ("a", "a")],
)  # fmt: skip
def test_links_inside_the_bundle_are_kept_as_written(path: str, target: str) -> None:
    assert read(tgz(symlink(path, target)))[0].entries[0].link_target == target


@pytest.mark.parametrize(
    ("path", "target"),
    [("a", ".."), ("a", "../b"), ("d/a", "../../b"), ("a", "/etc/passwd"), ("a", "//"), ("a", ""), ("a", "b/../../c"),
     ("d/a", "b/.."), ("d/a", "./../.././b"), ("a", "./../b"), ("d/a", "../b/../../c")],
)  # fmt: skip
def test_links_out_of_the_bundle_are_refused(path: str, target: str) -> None:
    error = refusal(tgz(symlink(path, target)))
    assert error.code is Code.UNSAFE_LINK
    assert error.member == path


def test_chain_that_would_escape_step_by_step_is_refused() -> None:
    assert refusal(tgz(directory("a/b"), symlink("a/up", ".."), symlink("x", "a/up/.."))).code is Code.UNSAFE_LINK
    read(tgz(directory("a/b"), symlink("a/up", ".."), symlink("a/b/back", "../up/a/up")))


@pytest.mark.parametrize("target", ["missing", "link", "dir", "../a", "/a", "later", "self", "hard", ""])
def test_hard_links_lead_to_earlier_regular_files_only(target: str) -> None:
    archive = tgz(
        file("a"),
        hardlink("hard", "a"),
        symlink("link", "a"),
        directory("dir"),
        hardlink("self", target),
        file("later"),
    )
    assert refusal(archive).code in (Code.UNSAFE_LINK, Code.UNSAFE_PATH)


def test_reader_stays_refused_after_an_error() -> None:
    reader = ArchiveReader(Recorder())
    with pytest.raises(ArchiveError):
        reader.feed(tgz(file("/a")))
    with pytest.raises(ArchiveError):
        reader.feed(tgz(file("a")))
    with pytest.raises(ArchiveError):
        reader.finish()


def test_error_messages_show_no_control_characters() -> None:
    error = refusal(tgz(file("a\n\x1b[31mb"), file("a\n\x1b[31mb")))
    assert str(error).isprintable()
    assert error.member is not None
    assert error.member.isprintable()


def test_errors_of_the_sink_pass_through() -> None:
    class Failing(Recorder):
        def data(self, chunk: memoryview) -> None:
            raise OSError("disk")

    with pytest.raises(OSError, match="disk"):
        ArchiveReader(Failing()).feed(tgz(file("a", b"1")))


# -- what others pack

_NAMES = st.text(st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1, max_size=40).filter(
    lambda name: name not in (".", "..") and len(name.encode()) < 200
)
_TREES = st.dictionaries(
    st.lists(_NAMES, min_size=1, max_size=4).map(tuple), st.binary(max_size=1500) | st.just("dir"), max_size=8
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(tree=_TREES, tar_format=st.sampled_from(["gnu", "pax", "posix"]), size=st.integers(1, 3000))
def test_what_gnu_tar_packs_is_read(tree: dict[tuple[str, ...], bytes | str], tar_format: str, size: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder, "root")
        root.mkdir()
        expected = {}
        for parts, content in tree.items():
            path = root.joinpath(*parts)
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                if isinstance(content, str):
                    path.mkdir(exist_ok=True)
                elif not path.exists():
                    path.write_bytes(content)
                    expected["/".join(parts)] = content
            except (FileExistsError, NotADirectoryError):
                continue
        directories = {str(path.relative_to(root)) for path in root.rglob("*") if path.is_dir()}
        archive = Path(folder, "a.tgz")
        subprocess.run(["tar", f"--format={tar_format}", "-czf", archive, "-C", root, "."], check=True)
        recorder, _ = read(archive.read_bytes(), size)
    assert recorder.contents == expected
    assert {entry.path for entry in recorder.entries if entry.type is EntryType.DIRECTORY} == directories


@settings(max_examples=300, deadline=None)
@given(data=st.binary(max_size=3000), size=st.integers(1, 600), keep=st.integers(0, 1600))
def test_nonsense_raises_nothing_but_archive_errors(data: bytes, size: int, keep: int) -> None:
    for archive in (tgz(*well_formed())[:keep] + data, tzst(*well_formed())[:keep] + data, gzip.compress(data)):
        try:
            read(archive, size)
        except ArchiveError:
            continue


@settings(max_examples=300, deadline=None)
@given(position=st.integers(0, 9000), value=st.binary(min_size=1, max_size=24))
def test_damaged_tar_raises_nothing_but_archive_errors(position: int, value: bytes) -> None:
    stream = bytearray(tar(*well_formed()))
    position %= len(stream)
    stream[position : position + len(value)] = value
    block = position // BLOCK * BLOCK
    # Make the checksum right again, so that the damage gets past it.
    stream[block + 148 : block + 156] = b" " * 8
    stream[block + 148 : block + 156] = b"%06o\0 " % sum(stream[block : block + BLOCK])
    try:
        recorder, _ = read(gzip.compress(bytes(stream), 1), 777)
    except ArchiveError:
        return
    assert all(not path.startswith("/") and ".." not in path.split("/") for path in recorder.paths)


def test_chunks_may_be_views_and_empty() -> None:
    archive = tgz(*well_formed())
    recorder = Recorder()
    reader = ArchiveReader(recorder)
    for chunk in chunks(archive, 50):
        reader.feed(memoryview(bytearray(chunk)))
        reader.feed(b"")
    reader.finish()
    assert recorder.contents == read(archive)[0].contents
