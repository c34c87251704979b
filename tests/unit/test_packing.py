"""Packing a directory: the same tree, the same bytes, and nothing that could not be unpacked."""

from __future__ import annotations

import hashlib
import io
import os
import shutil
import socket
import subprocess
import sys
import tarfile
import tempfile
import tracemalloc
from pathlib import Path

import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from libs.common.archive import FRAME_BYTES
from services.builder.packing import CHUNK_BYTES, PackingError, pack
from services.registry.inspection import UploadInspection
from services.runner.extraction import extract_stream
from tests.unit.archives import read
from tests.unit.test_extraction import open_descriptors, tree


def packed(directory: Path) -> bytes:
    return b"".join(pack(directory))


def unpack(archive: bytes, destination: Path) -> None:
    extract_stream([archive], destination, expected_digest="sha256:" + hashlib.sha256(archive).hexdigest())


def members(archive: bytes) -> list[tarfile.TarInfo]:
    """What Python's tarfile finds in it: another reader than ours."""
    stream = zstandard.ZstdDecompressor().decompressobj().decompress(archive)
    with tarfile.open(fileobj=io.BytesIO(stream)) as opened:
        return opened.getmembers()


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A tree as `npm ci` leaves it, with all that makes packing hard."""
    root = tmp_path / "source"
    for path, content, mode in (
        ("manifest.json", b'{"name": "a"}', 0o600),
        ("dist/index.js", b"x" * 3000, 0o664),
        ("node_modules/tool/cli.js", b"#!/usr/bin/env node\n", 0o775),
        ("node_modules/tool-kit/" + "n" * 120 + ".js", b"long", 0o644),
        ("node_modules/tool/naïve/日本.txt", b"", 0o444),
        ("a b/new\nline", b"1", 0o700),
    ):
        file = root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
        file.chmod(mode)
    (root / "node_modules/.bin").mkdir()
    (root / "node_modules/.bin/tool").symlink_to("../tool/cli.js")
    (root / "long-link").symlink_to("t" * 150)
    (root / "empty").mkdir(mode=0o700)
    os.link(root / "dist/index.js", root / "dist/same.js")
    return root


def test_what_is_packed_is_unpacked(source: Path, tmp_path: Path) -> None:
    unpack(packed(source), tmp_path / "out")
    expected = tree(source)
    found = tree(tmp_path / "out")
    assert {name: (kind, content) for name, (kind, _, content) in found.items()} == {
        name: (kind, content) for name, (kind, _, content) in expected.items()
    }
    executable = {name for name, (kind, mode, _) in found.items() if kind == "file" and mode == 0o755}
    assert executable == {"node_modules/tool/cli.js", "a b/new\nline"}
    assert {mode for kind, mode, _ in found.values() if kind != "link"} == {0o755, 0o644}
    assert (tmp_path / "out/node_modules/.bin/tool").read_bytes() == b"#!/usr/bin/env node\n"


def test_same_tree_gives_same_bytes(source: Path, tmp_path: Path) -> None:
    first = packed(source)
    copy = tmp_path / "elsewhere"
    # Created in another order, at another time, with other links and other modes that do not count.
    for path in sorted(source.rglob("*"), reverse=True):
        target = copy / path.relative_to(source)
        target.parent.mkdir(parents=True, exist_ok=True)
        if path.is_symlink():
            target.symlink_to(path.readlink())
        elif path.is_dir():
            target.mkdir(exist_ok=True)
        else:
            shutil.copyfile(path, target)
            target.chmod(0o711 if path.stat().st_mode & 0o100 else 0o640)
            os.utime(target, (1, 1))
    assert packed(copy) == first
    unpack(first, tmp_path / "out")
    assert packed(tmp_path / "out") == first


def test_headers_say_nothing_of_this_machine(source: Path) -> None:
    found = members(packed(source))
    names = [member.name for member in found]
    assert names == sorted(names, key=str.encode)
    assert {(m.uid, m.gid, m.uname, m.gname, m.mtime) for m in found} == {(0, 0, "", "", 499162500)}
    assert {m.mode for m in found if not m.issym()} == {0o755, 0o644}
    assert not [m.name for m in found if m.islnk()]


def test_gnu_tar_reads_it(source: Path, tmp_path: Path) -> None:
    plain = tmp_path / "plain.tar"
    plain.write_bytes(zstandard.ZstdDecompressor().decompressobj().decompress(packed(source)))
    assert plain.stat().st_size % 10240 == 0
    (tmp_path / "out").mkdir()
    done = subprocess.run(["tar", "-xf", plain, "-C", tmp_path / "out"], capture_output=True, text=True, check=True)
    assert done.stderr == ""
    assert {name: entry[2] for name, entry in tree(tmp_path / "out").items()} == {
        name: entry[2] for name, entry in tree(source).items()
    }


def test_frames_are_independent_and_read_by_others(tmp_path: Path) -> None:
    root = tmp_path / "source"
    root.mkdir()
    (root / "big").write_bytes(os.urandom(FRAME_BYTES) * 2 + b"x" * 3 * FRAME_BYTES)
    frames = list(pack(root))
    sizes = [zstandard.get_frame_parameters(frame).content_size for frame in frames]
    assert sizes[:-1] == [FRAME_BYTES] * 5
    assert 0 < sizes[-1] <= FRAME_BYTES
    stream = b"".join(zstandard.ZstdDecompressor().decompress(frame) for frame in frames)
    joined = zstandard.ZstdDecompressor().stream_reader(io.BytesIO(b"".join(frames)), read_across_frames=True)
    assert joined.read() == stream
    with tarfile.open(fileobj=io.BytesIO(stream)) as opened:
        member = opened.extractfile("big")
        assert member is not None
        assert member.read() == (root / "big").read_bytes()
    unpack(b"".join(frames), tmp_path / "out")
    assert tree(tmp_path / "out") == tree(root)


def test_registry_describes_it(source: Path) -> None:
    upload = UploadInspection()
    for chunk in pack(source):
        upload.feed(chunk)
    found = upload.finish()
    assert (found.compression, found.manifest, found.file_count) == ("zstd", {"name": "a"}, 9)


def test_every_length_of_name_and_link_survives(tmp_path: Path) -> None:
    root = tmp_path / "source"
    (root / "d").mkdir(parents=True)
    for length in (*range(90, 106), 200, 255):
        (root / "d" / ("n" * (length - 2) if length <= 255 else "")).write_bytes(b"%d" % length)
        (root / f"link{length}").symlink_to("t" * length)
        (root / ("é" * (length // 2))).mkdir(exist_ok=True)
    unpack(packed(root), tmp_path / "out")
    assert {name: entry[2] for name, entry in tree(tmp_path / "out").items()} == {
        name: entry[2] for name, entry in tree(root).items()
    }


def test_chunks_are_bounded_and_memory_is_flat(tmp_path: Path) -> None:
    noise = os.urandom(1 << 20)

    def measured(megabytes: int) -> int:
        root = tmp_path / f"{megabytes}"
        root.mkdir()
        with (root / "big").open("wb") as big:
            for _ in range(megabytes):
                big.write(noise)
        tracemalloc.start()
        assert max(map(len, pack(root))) <= FRAME_BYTES + 1024
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return peak

    assert measured(48) < measured(3) + (1 << 20)


def test_empty_directory_is_an_empty_archive(tmp_path: Path) -> None:
    assert read(packed(tmp_path))[1].entries == 0


# -- what is refused


@pytest.mark.parametrize("target", ["/etc/passwd", "..", "../outside", "dist/../../outside", "dist/../x", "/"])
def test_links_that_leave_are_refused(source: Path, target: str) -> None:
    (source / "bad").symlink_to(target)
    with pytest.raises(PackingError, match="bad is a symbolic link") as caught:
        packed(source)
    assert caught.value.member == "bad"


def test_sockets_and_fifos_are_refused(tmp_path: Path) -> None:
    for name in ("fifo", "socket"):
        root = tmp_path / name
        (root / "d").mkdir(parents=True)
        if name == "fifo":
            os.mkfifo(root / "d/fifo")
        else:
            with socket.socket(socket.AF_UNIX) as server:
                server.bind(str(root / "d/socket"))
        with pytest.raises(PackingError, match=f"d/{name} is a"):
            packed(root)


def test_names_that_are_not_utf8_are_refused(tmp_path: Path) -> None:
    (tmp_path / os.fsdecode(b"caf\xe9")).write_text("x")
    with pytest.raises(PackingError, match="not UTF-8"):
        packed(tmp_path)


def test_target_that_is_not_utf8_is_refused(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(os.fsdecode(b"caf\xe9"))
    with pytest.raises(PackingError, match="not UTF-8"):
        packed(tmp_path)


def test_too_deep_trees_are_refused(tmp_path: Path) -> None:
    tmp_path.joinpath(*["d"] * 65).mkdir(parents=True)
    with pytest.raises(PackingError, match="levels deep"):
        packed(tmp_path)


@pytest.mark.parametrize("change", ["grows", "shrinks", "vanishes", "replaced", "link", "directory", "fifo"])
def test_file_that_changes_meanwhile_is_refused(tmp_path: Path, change: str) -> None:
    (tmp_path / "a").write_bytes(os.urandom(3 * CHUNK_BYTES))
    victim = tmp_path / "z"
    victim.write_bytes(b"12345")
    before = open_descriptors()
    stream = pack(tmp_path)
    next(stream)
    if change in ("grows", "shrinks"):
        victim.write_bytes(b"123456" if change == "grows" else b"1234")
    else:
        victim.rename(tmp_path / "old") if change != "vanishes" else victim.unlink()
        if change == "replaced":
            victim.write_bytes(b"54321")
        elif change == "link":
            victim.symlink_to("/etc/passwd")
        elif change == "directory":
            victim.mkdir()
        elif change == "fifo":
            os.mkfifo(victim)
    with pytest.raises(PackingError, match="z changed while it was packed"):
        list(stream)
    assert open_descriptors() == before


def test_directory_replaced_by_a_link_leaks_nothing(tmp_path: Path) -> None:
    root, outside = tmp_path / "root", tmp_path / "outside"
    (root / "d").mkdir(parents=True)
    outside.mkdir()
    (root / "a").write_bytes(os.urandom(3 * CHUNK_BYTES))
    (root / "d/file").write_text("12345")
    (outside / "file").write_text("token")
    stream = pack(root)
    next(stream)
    (root / "d").rename(root / "e")
    (root / "d").symlink_to(outside)
    with pytest.raises(PackingError, match="d/file changed"):
        list(stream)


def test_abandoned_stream_leaves_no_descriptors(source: Path) -> None:
    before = open_descriptors()
    stream = pack(source)
    next(stream)
    del stream
    assert open_descriptors() == before
    with pytest.raises(OSError):
        packed(source / "missing")


def test_packing_is_the_same_in_another_process(source: Path) -> None:
    code = (
        "import sys, hashlib, pathlib; from services.builder.packing import pack; "
        "print(hashlib.sha256(b''.join(pack(pathlib.Path(sys.argv[1])))).hexdigest())"
    )
    root = Path(__file__).parents[2]
    for seed in ("0", "1"):
        done = subprocess.run(
            [sys.executable, "-c", code, source],
            env=os.environ | {"PYTHONPATH": str(root), "PYTHONHASHSEED": seed, "LC_ALL": "C"},
            capture_output=True,
            text=True,
            check=True,
        )
        assert done.stdout.strip() == hashlib.sha256(packed(source)).hexdigest()


_NAMES = st.text(st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1, max_size=60).filter(
    lambda name: name not in (".", "..") and len(name.encode()) <= 240
)


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.dictionaries(
        st.lists(_NAMES, min_size=1, max_size=4).map(tuple),
        st.tuples(st.binary(max_size=1200), st.booleans()) | st.none(),
        max_size=8,
    )
)
def test_any_tree_makes_the_round_trip(files: dict[tuple[str, ...], tuple[bytes, bool] | None]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder, "source")
        root.mkdir()
        for parts, content in files.items():
            path = root.joinpath(*parts)
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                if content is None:
                    path.mkdir(exist_ok=True)
                else:
                    path.write_bytes(content[0])
                    path.chmod(0o755 if content[1] else 0o644)
            except (FileExistsError, NotADirectoryError, IsADirectoryError):
                continue
        archive = packed(root)
        unpack(archive, Path(folder, "out"))
        assert tree(Path(folder, "out")) == tree(root)
        assert packed(Path(folder, "out")) == archive
