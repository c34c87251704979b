"""zstd archives of many frames: those that tell their size are decompressed apart from each other, and not trusted."""

from __future__ import annotations

import os
import struct
import threading
import time
import tracemalloc
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from libs.common.archive import (
    FRAME_BYTES,
    ArchiveError,
    ArchiveErrorCode,
    ArchiveLimits,
    Decompression,
    Frame,
)
from services.runner.extraction import IntegrityError, extract_stream
from tests.unit.archives import chunks, file, read, tar, tgz, well_formed
from tests.unit.test_hostile_archives import digest_of, files, unpack

Code = ArchiveErrorCode
SKIPPABLE = b"\x53\x2a\x4d\x18" + struct.pack("<I", 5) + b"12345"
EMPTY_BLOCK, LAST_EMPTY_BLOCK = bytes(3), b"\x01\x00\x00"


def framed(stream: bytes, size: int, *, level: int = 3, checksum: bool = False) -> bytes:
    """One frame for each `size` bytes, as pzstd writes them and as the builder does."""
    compressor = zstandard.ZstdCompressor(level=level, write_checksum=checksum)
    return b"".join(compressor.compress(part) for part in chunks(stream, size))


def frame_header(content_size: int) -> bytes:
    """Of a single-segment frame without checksum (RFC 8878, 3.1.1.1)."""
    return b"\x28\xb5\x2f\xfd\xa0" + struct.pack("<I", content_size)


def with_content_size(frame: bytes, content_size: int) -> bytes:
    """The same frame, saying something else of its size."""
    assert frame[4] >> 6 == 2
    assert frame[4] & 0x20
    return frame[:5] + struct.pack("<I", content_size) + frame[9:]


def big_members() -> tuple[bytes, ...]:
    noise = os.urandom(300_000)
    return (*well_formed(), file("noise", noise * 12), *(file(f"many/{n}", noise[:n]) for n in range(0, 3000, 17)))


def refused(archive: bytes, limits: ArchiveLimits | None = None, size: int = 1 << 16) -> ArchiveErrorCode:
    """Why the reader that decompresses frame by frame, as the registry does, takes it for bad."""
    with pytest.raises(ArchiveError) as caught:
        read(archive, size, limits)
    return caught.value.code


@pytest.mark.parametrize("size", [700, 65_536, 1_000_000, FRAME_BYTES, FRAME_BYTES + 1, 3 << 20])
@pytest.mark.parametrize("checksum", [False, True])
def test_frames_of_any_size_are_unpacked(tmp_path: Path, size: int, checksum: bool) -> None:
    members = big_members()
    archive = framed(tar(*members), size, checksum=checksum)
    unpack(archive, tmp_path / "framed")
    unpack(tgz(*members), tmp_path / "expected")
    assert files(tmp_path / "framed") == files(tmp_path / "expected")


def test_only_frames_that_tell_a_bounded_size_are_given_away_whole() -> None:
    unknown = zstandard.ZstdCompressor(write_content_size=False)
    content = os.urandom(FRAME_BYTES)
    for archive, kind, size in (
        (zstandard.compress(content), Frame, FRAME_BYTES),
        (zstandard.compress(content + b"x"), bytes, FRAME_BYTES + 1),
        (unknown.compress(content), bytes, FRAME_BYTES),
    ):
        decompression = Decompression(ArchiveLimits())
        pieces = [piece for chunk in chunks(archive, 1000) for piece in decompression.split(chunk)]
        assert {type(piece) for piece in pieces} == {kind}
        assert sum(map(len, pieces)) == decompression.stream_bytes == size


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 9000), st.sampled_from(["sized", "unsized", "skippable", "empty"])), max_size=8),
    st.integers(1, 5000),
)
def test_how_a_stream_is_framed_makes_no_difference(parts: list[tuple[int, str]], chunk_size: int) -> None:
    stream = tar(*well_formed())
    sized, unsized = zstandard.ZstdCompressor(), zstandard.ZstdCompressor(write_content_size=False)
    archive, position = b"", 0
    for length, kind in parts:
        if kind in ("skippable", "empty"):
            archive += SKIPPABLE if kind == "skippable" else zstandard.compress(b"")
        else:
            archive += (sized if kind == "sized" else unsized).compress(stream[position : position + length])
            position += length
    archive += sized.compress(stream[position:])
    recorder, totals = read(archive, chunk_size)
    assert recorder.contents == read(tgz(*well_formed()))[0].contents
    assert totals.stream_bytes == len(stream)


def test_truncation_at_and_beside_every_border_is_noticed(tmp_path: Path) -> None:
    stream = tar(file("a", os.urandom(5000)), *well_formed())
    frames = [zstandard.compress(b""), SKIPPABLE, *(zstandard.compress(part) for part in chunks(stream, 1500))]
    archive, border = b"".join(frames), 0
    for number, frame in enumerate(frames):
        for length in {border - 1, border, border + 1, border + 5, border + len(frame) - 1} - {-1}:
            cut = archive[:length]
            assert refused(cut) in (
                Code.EMPTY,
                Code.TRUNCATED,
                Code.MISSING_END,
                Code.TRAILING_DATA,  # a part of a magic number
            )
            with pytest.raises(ArchiveError):
                unpack(cut, tmp_path / f"{number}-{length}")
            with pytest.raises(IntegrityError):
                extract_stream([cut], tmp_path / f"{number}-{length}-sent", expected_digest=digest_of(archive))
            assert not list(tmp_path.glob("*/node_modules"))  # which holds nothing but a link
        border += len(frame)


@pytest.mark.parametrize("said", [0, 1, 99_999, 100_001, FRAME_BYTES, FRAME_BYTES + 1, 1 << 31])
@pytest.mark.parametrize("content", [bytes(100_000), b"abcdefg " * 12_500, os.urandom(100_000)])
def test_frames_that_lie_about_their_size_are_refused(tmp_path: Path, content: bytes, said: int) -> None:
    stream = tar(file("a", content[:-1536]))[:100_000]
    start, rest = zstandard.compress(stream), zstandard.compress(tar(file("a", content[:-1536]))[100_000:])
    assert read(start + rest)[1].entries == 1
    lie = with_content_size(start, said)
    for archive in (lie, lie + rest):
        assert refused(archive) in (Code.CORRUPT, Code.WINDOW_TOO_LARGE)
        with pytest.raises(ArchiveError):
            unpack(archive, tmp_path / "bundle")


def test_first_fault_counts_though_a_later_frame_is_known_to_be_bad(tmp_path: Path) -> None:
    stream = tar(*big_members())
    parts = [zstandard.compress(part) for part in chunks(stream, 1 << 19)]
    parts[2] = with_content_size(parts[2], (1 << 19) - 1)
    archive = b"".join(parts) + b"trailing"
    for number, limits in enumerate((ArchiveLimits(), ArchiveLimits(max_unpacked_bytes=len(stream) - 100_000))):
        with pytest.raises(ArchiveError) as caught:
            unpack(archive, tmp_path / f"{number}", limits=limits)
        assert caught.value.code is refused(archive, limits) is Code.CORRUPT
    with pytest.raises(IntegrityError):
        extract_stream([archive], tmp_path / "sent", expected_digest=digest_of(b"".join(parts)))


def test_bomb_of_frames_is_refused_before_it_goes_off(tmp_path: Path) -> None:
    archive = zstandard.compress(bytes(FRAME_BYTES)) * 20_000
    decompression = Decompression(ArchiveLimits())
    with pytest.raises(ArchiveError) as caught:
        for chunk in chunks(archive, 1 << 16):
            for piece in decompression.split(chunk):
                assert isinstance(piece, Frame)
    assert caught.value.code is Code.RATIO
    assert refused(archive) is Code.RATIO
    with pytest.raises(ArchiveError, match="times its compressed size"):
        unpack(archive, tmp_path / "bundle")


def tiny_frames() -> bytes:
    stream = tar(file("a", os.urandom(5_000)))
    return framed(stream, 1)


def blocks_without_content() -> bytes:
    frame = frame_header(1) + EMPTY_BLOCK * 2_000 + b"\x09\x00\x00x"
    return frame * 8


def frames_without_content() -> bytes:
    return (frame_header(0) + LAST_EMPTY_BLOCK) * 5_000


@pytest.mark.parametrize("hostile", [tiny_frames, blocks_without_content, frames_without_content])
def test_many_tiny_parts_take_little_memory_and_leave_no_thread(tmp_path: Path, hostile: Callable[[], bytes]) -> None:
    archive, threads = hostile(), threading.active_count()
    tracemalloc.start()
    with suppress(ArchiveError):
        unpack(archive, tmp_path / "bundle")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 24 << 20, peak
    assert threading.active_count() == threads


def test_small_frame_of_endless_blocks_is_refused() -> None:
    archive = frame_header(100) + EMPTY_BLOCK * (2 * FRAME_BYTES // 3 + 1)
    assert refused(archive) is Code.TOO_MANY_FRAMES
    assert refused(archive[: -3 * 1000]) is Code.TRUNCATED


def test_damage_in_a_frame_ends_the_other_threads(tmp_path: Path) -> None:
    stream = tar(file("a", os.urandom(12 << 20)))
    parts = [zstandard.compress(part) for part in chunks(stream, FRAME_BYTES)]
    parts[5] = with_content_size(parts[5], FRAME_BYTES - 1)
    before = threading.active_count()
    assert refused(b"".join(parts)) is Code.CORRUPT
    with pytest.raises(ArchiveError):
        unpack(b"".join(parts), tmp_path / "bundle")
    while threading.active_count() > before:
        time.sleep(0.01)
