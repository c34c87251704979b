"""Unpacking a bundle and removing what a run leaves."""

from __future__ import annotations

import errno
import gzip
import hashlib
import os
import resource
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from libs.common.archive import ArchiveError, ArchiveLimits, Entry, EntryType
from services.runner.extraction import (
    ExtractionCancelledError,
    ExtractionError,
    ExtractionTotals,
    IntegrityError,
    TreeExtractor,
    extract_stream,
    remove_tree,
)
from tests.unit.archives import chunks, directory, file, hardlink, header, pax, symlink, tgz, tzst, well_formed


def digest_of(archive: bytes) -> str:
    return "sha256:" + hashlib.sha256(archive).hexdigest()


def extract(archive: bytes, destination: Path, chunk_size: int = 1 << 16) -> ExtractionTotals:
    return extract_stream(
        chunks(archive, chunk_size), destination, expected_digest=digest_of(archive), expected_size=len(archive)
    )


def tree(root: Path) -> dict[str, tuple[str, int, bytes | str]]:
    """Everything below `root`: kind, mode, content or target."""
    found: dict[str, tuple[str, int, bytes | str]] = {}
    for path in root.rglob("*"):
        mode = path.lstat().st_mode & 0o7777
        name = str(path.relative_to(root))
        if path.is_symlink():
            found[name] = ("link", 0, str(path.readlink()))
        elif path.is_dir():
            found[name] = ("directory", mode, "")
        else:
            found[name] = ("file", mode, path.read_bytes())
    return found


def open_descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


@pytest.fixture
def outside(tmp_path: Path) -> Iterator[Path]:
    """A folder beside the destination that nothing may touch."""
    folder = tmp_path / "outside"
    folder.mkdir()
    (folder / "file").write_text("untouched")
    yield folder
    assert tree(folder) == {"file": ("file", (folder / "file").stat().st_mode & 0o7777, b"untouched")}


EXPECTED = {
    "manifest.json": ("file", 0o644, b'{"name": "small", "version": "1.0.0"}'),
    "dist": ("directory", 0o755, ""),
    "dist/index.js": ("file", 0o644, b"export const handler = () => 1\n" * 40),
    "bin": ("directory", 0o755, ""),
    "bin/run": ("file", 0o755, b"#!/bin/sh\n"),
    "bin/again": ("file", 0o755, b"#!/bin/sh\n"),
    "node_modules": ("directory", 0o755, ""),
    "node_modules/.bin": ("directory", 0o755, ""),
    "node_modules/.bin/run": ("link", 0, "../../bin/run"),
    "outputs": ("directory", 0o755, ""),
    "deep": ("directory", 0o755, ""),
    "deep/" + "x" * 120: ("directory", 0o755, ""),
    "deep/" + "x" * 120 + "/naïve.txt": ("file", 0o644, b"long"),
}


@pytest.mark.parametrize("archive", [tgz(*well_formed()), tzst(*well_formed())])
@pytest.mark.parametrize("size", [1, 100, 1 << 20])
def test_archive_becomes_the_tree_it_describes(tmp_path: Path, archive: bytes, size: int) -> None:
    before = open_descriptors()
    totals = extract(archive, tmp_path / "bundle", size)
    assert tree(tmp_path / "bundle") == EXPECTED
    assert (tmp_path / "bundle/bin/again").samefile(tmp_path / "bundle/bin/run")
    assert totals.digest == digest_of(archive)
    assert (totals.compressed_bytes, totals.files, totals.links, totals.directories) == (len(archive), 4, 2, 7)
    assert totals.unpacked_bytes == 37 + 31 * 40 + 10 + 4
    assert open_descriptors() == before


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077, 0o777])
def test_modes_do_not_depend_on_the_umask(tmp_path: Path, umask: int) -> None:
    old = os.umask(umask)
    try:
        extract(tgz(*well_formed()), tmp_path / "bundle")
    finally:
        os.umask(old)
    assert tree(tmp_path / "bundle") == EXPECTED


def test_modes_are_reduced(tmp_path: Path) -> None:
    members = [file(f"m{mode:04o}", mode=mode) for mode in (0o000, 0o400, 0o666, 0o4755, 0o2700, 0o777, 0o111, 0o070)]
    extract(tgz(*members, directory("d")), tmp_path / "bundle")
    modes = {name: mode for name, (_, mode, _) in tree(tmp_path / "bundle").items()}
    assert modes == {
        "m0000": 0o644, "m0400": 0o644, "m0666": 0o644, "m4755": 0o755, "m2700": 0o755, "m0777": 0o755, "m0111": 0o755,
        "m0070": 0o644, "d": 0o755,
    }  # fmt: skip


def test_members_in_any_order_are_written(tmp_path: Path) -> None:
    names = [f"{a}/{b}/{c}" for c in "xyz" for b in "pq" for a in "klm"]
    extract(tgz(*(file(name, name.encode()) for name in names)), tmp_path / "bundle")
    assert {name: content for name, (kind, _, content) in tree(tmp_path / "bundle").items() if kind == "file"} == {
        name: name.encode() for name in names
    }


def test_deep_trees_need_few_descriptors(tmp_path: Path) -> None:
    members = [pax({"path": "/".join("d" * 60) + f"/{i}/file"}) + header("x") for i in range(300)]
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(open_descriptors() + 90, hard), hard))
    try:
        extract(tgz(*members), tmp_path / "bundle")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_names_that_differ_in_case_are_both_there(tmp_path: Path) -> None:
    extract(tgz(file("README", b"1"), file("readme", b"2")), tmp_path / "bundle")
    assert {name: entry[2] for name, entry in tree(tmp_path / "bundle").items()} == {"README": b"1", "readme": b"2"}


# -- hostile archives


@pytest.mark.parametrize(
    "members",
    [
        (file("../outside/file", b"evil"),),
        (file("a/../../outside/file", b"evil"),),
        (pax({"path": "/tmp/stowage-evil"}) + header("x"),),
        (symlink("l", "../outside"), file("l/file", b"evil")),
        (symlink("l", "../outside"),),
        (directory("d"), symlink("d/l", "../../outside/file")),
        (symlink("l", "."), symlink("l/m", ".."), file("l/m/outside/file", b"evil")),
        (file("a"), hardlink("h", "../outside/file")),
        (symlink("s", "x"), hardlink("h", "s")),
        (symlink("l", "d"), directory("l"), file("l/file")),
        (header("dev", b"3"),),
        (file("a"), file("a")),
    ],
)
def test_hostile_archives_touch_nothing_outside(tmp_path: Path, outside: Path, members: tuple[bytes, ...]) -> None:
    before = open_descriptors()
    with pytest.raises(ArchiveError):
        extract(tgz(*members), tmp_path / "bundle")
    assert open_descriptors() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bundle", outside.name]
    remove_tree(tmp_path / "bundle")


def test_links_in_the_tree_end_inside_of_it(tmp_path: Path, outside: Path) -> None:
    members = (
        file("a/b/c/f", b"f"),
        symlink("a/b/up", ".."),
        symlink("a/b/c/top", "../../.."),
        symlink("x", "a/b/up/b/up/b/c/top"),
        symlink("loop", "loop"),
        symlink("a/again", "b/c/top/a/b/up"),
    )
    extract(tgz(*members), tmp_path / "bundle")
    root = (tmp_path / "bundle").resolve()
    for path in ("a/b/up", "a/b/c/top", "x", "a/again"):
        assert (root / path).resolve().is_relative_to(root)
    assert outside.exists()


@pytest.mark.parametrize("entry_type", [EntryType.FILE, EntryType.DIRECTORY])
def test_extractor_itself_follows_no_link(tmp_path: Path, outside: Path, entry_type: EntryType) -> None:
    """The reader lets no such archive pass: here somebody plants a link in the middle of the extraction."""
    with TreeExtractor(tmp_path / "bundle") as extractor:
        extractor.begin(Entry("d/a", EntryType.FILE, 0, 0o644))
        extractor.end()
        extractor.begin(Entry("b", EntryType.FILE, 0, 0o644))
        extractor.end()
        extractor.flush()
        shutil.rmtree(tmp_path / "bundle/d")
        (tmp_path / "bundle/d").symlink_to(outside)
        (tmp_path / "bundle/link").symlink_to(outside / "file")
        for path in ("d/file", "d/new", "link"):
            with pytest.raises(ExtractionError) as caught:  # in whichever of the steps
                extractor.begin(Entry(path, entry_type, 0, 0o644))
                extractor.end()
                extractor.flush()
            assert caught.value.member == path


def test_destination_must_be_fresh(tmp_path: Path, outside: Path) -> None:
    (tmp_path / "link").symlink_to(outside)
    for path in (outside, tmp_path / "link", outside / "file", tmp_path / "missing/parent"):
        with pytest.raises(ExtractionError):
            TreeExtractor(path)
    (tmp_path / "empty").mkdir(mode=0o700)
    extract(tgz(*well_formed()), tmp_path / "empty")
    assert tree(tmp_path / "empty") == EXPECTED


# -- integrity


def test_wrong_digest_is_refused_before_links_are_made(tmp_path: Path) -> None:
    archive = tgz(*well_formed())
    with pytest.raises(IntegrityError) as caught:
        extract_stream([archive], tmp_path / "bundle", expected_digest="sha256:" + "0" * 64)
    assert caught.value.expected == "sha256:" + "0" * 64
    assert caught.value.found == digest_of(archive)
    assert not (tmp_path / "bundle/node_modules").exists()


def test_wrong_length_is_refused(tmp_path: Path) -> None:
    archive = tgz(*well_formed())
    for number, size in enumerate((len(archive) - 1, len(archive) + 1)):
        with pytest.raises(IntegrityError):
            extract_stream([archive], tmp_path / f"{number}", expected_digest=digest_of(archive), expected_size=size)


def test_damage_in_transfer_is_an_integrity_error_not_a_bad_archive(tmp_path: Path) -> None:
    archive = tgz(*well_formed())
    damaged = archive[:60] + bytes([archive[60] ^ 255]) + archive[61:]
    for number, sent in enumerate((damaged, archive[:-5], b"<html>", b"", archive + b"x", archive * 2)):
        with pytest.raises(IntegrityError):
            extract_stream(chunks(sent, 50), tmp_path / f"{number}", expected_digest=digest_of(archive))


def test_intact_but_bad_archive_is_an_archive_error(tmp_path: Path) -> None:
    for number, archive in enumerate((tgz(file("a"), end=b""), tgz(file("../a")), tgz(file("a")) + b"x", b"", b"text")):
        with pytest.raises(ArchiveError):
            extract(archive, tmp_path / f"{number}", 7)


def test_endless_stream_is_not_read_to_its_end(tmp_path: Path) -> None:
    def endless() -> Iterator[bytes]:
        yield gzip.compress(b"no tar" * 1000)
        while True:
            yield bytes(1 << 20)

    with pytest.raises(ArchiveError):
        extract_stream(
            endless(), tmp_path / "a", expected_digest="sha256:", limits=ArchiveLimits(max_compressed_bytes=8 << 20)
        )
    with pytest.raises(IntegrityError):
        extract_stream(endless(), tmp_path / "b", expected_digest="sha256:", expected_size=5 << 20)


def test_errors_of_the_source_pass_through_and_leak_nothing(tmp_path: Path) -> None:
    def broken() -> Iterator[bytes]:
        yield tgz(*well_formed())[:200]
        raise ConnectionResetError("reset")

    before = open_descriptors()
    with pytest.raises(ConnectionResetError):
        extract_stream(broken(), tmp_path / "bundle", expected_digest="sha256:")
    assert open_descriptors() == before


def test_cancelling_stops_between_chunks(tmp_path: Path) -> None:
    archive = tgz(*well_formed())
    event = threading.Event()
    taken = []

    def source() -> Iterator[bytes]:
        for chunk in chunks(archive, 20):
            taken.append(chunk)
            if len(taken) == 3:
                event.set()
            yield chunk

    ways: list[threading.Event | Callable[[], bool]] = [event, event.is_set]
    for number, cancelled in enumerate(ways):
        event.clear()
        taken.clear()
        with pytest.raises(ExtractionCancelledError):
            extract_stream(source(), tmp_path / f"{number}", expected_digest="sha256:", cancelled=cancelled)
        assert len(taken) == 3


# -- the system says no


# Imported before the rights are given up: the installation may be root's own.
PREPARE = """
import hashlib, os, resource, sys
from pathlib import Path
from services.runner.extraction import extract_stream, remove_tree
if os.geteuid() == 0:
    os.setgroups([]), os.setgid(65534), os.setuid(65534)
"""


def in_child(code: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Run Python code in a process of its own, without root's rights."""
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", PREPARE + code, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=120,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])},
    )


EXTRACT = """
data = Path(sys.argv[1]).read_bytes()
extract_stream([data], Path(sys.argv[2]), expected_digest="sha256:" + hashlib.sha256(data).hexdigest())
"""


@pytest.fixture
def shared() -> Iterator[Path]:
    """A folder that a process without rights may write to."""
    folder = Path("/var/tmp") / f"stowage-test-{os.getpid()}-{time.monotonic_ns()}"
    folder.mkdir()
    folder.chmod(0o777)
    yield folder
    remove_tree(folder)


def test_extraction_needs_no_rights(shared: Path) -> None:
    archive = shared / "a.tgz"
    archive.write_bytes(tgz(*well_formed()))
    archive.chmod(0o644)
    done = in_child(EXTRACT, archive, shared / "bundle")
    assert done.returncode == 0, done.stderr
    assert tree(shared / "bundle") == EXPECTED


@pytest.mark.skipif(os.geteuid() != 0, reason="a user's other processes count as well: here it is one that has none")
def test_extraction_needs_no_further_threads(shared: Path) -> None:
    archive = shared / "a.tgz"
    archive.write_bytes(tgz(*(file(f"f{number}", b"1") for number in range(500))))
    archive.chmod(0o644)
    done = in_child("resource.setrlimit(resource.RLIMIT_NPROC, (1, 1))\n" + EXTRACT, archive, shared / "b")
    assert done.returncode == 0, done.stderr
    assert len(tree(shared / "b")) == 500


def test_full_device_is_a_clear_error(tmp_path: Path) -> None:
    with TreeExtractor(tmp_path / "bundle") as extractor:
        extractor.begin(Entry("data/big.bin", EntryType.FILE, 20, 0o644))
        extractor.data(memoryview(b"0123456789"))
        full = os.open("/dev/full", os.O_WRONLY)
        os.dup2(full, extractor._descriptor)
        os.close(full)
        with pytest.raises(ExtractionError, match=r"data/big\.bin could not be written: no space is left") as caught:
            extractor.data(memoryview(b"0123456789"))
    assert caught.value.errno == errno.ENOSPC
    assert caught.value.member == "data/big.bin"


# -- removing


def test_removing_a_tree_is_idempotent(tmp_path: Path) -> None:
    extract(tgz(*well_formed()), tmp_path / "bundle")
    remove_tree(tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()
    remove_tree(tmp_path / "bundle")
    remove_tree(tmp_path / "never/was")


def test_links_are_removed_and_not_followed(tmp_path: Path, outside: Path) -> None:
    run = tmp_path / "run"
    (run / "a").mkdir(parents=True)
    (run / "a/link").symlink_to(outside)
    (run / "up").symlink_to("..")
    os.link(outside / "file", run / "hard")
    remove_tree(run)
    assert not run.exists()
    (tmp_path / "as-link").symlink_to(outside)
    remove_tree(tmp_path / "as-link")
    assert not (tmp_path / "as-link").is_symlink()
    (tmp_path / "as-file").write_text("x")
    remove_tree(tmp_path / "as-file")
    assert not (tmp_path / "as-file").exists()


def test_special_files_are_removed(tmp_path: Path) -> None:
    run = tmp_path / "run"
    (run / "d").mkdir(parents=True)
    os.mkfifo(run / "d/fifo")
    (run / b"\xff\n".decode("utf-8", "surrogateescape")).mkdir()
    remove_tree(run)
    assert not run.exists()


HOSTILE_TREE = """
root = Path(sys.argv[1])
for path in ("a/b/c", "d/e", "f"):
    (root / path).mkdir(parents=True)
    (root / path / "file").write_text("x")
    (root / path / "file").chmod(0)
for path in ("a/b/c", "a/b", "a", "d/e", "f"):
    (root / path).chmod(0)
(root / "d").chmod(0o500)
root.chmod(0)
"""

REMOVE = "remove_tree(Path(sys.argv[1]))"


def test_unreadable_directories_are_removed_without_rights(shared: Path) -> None:
    run = shared / "run"
    made = in_child(HOSTILE_TREE, run)
    assert made.returncode == 0, made.stderr
    done = in_child(REMOVE, run)
    assert done.returncode == 0, done.stderr
    assert not run.exists()


def test_nesting_beyond_the_longest_path_is_removed(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    directory = os.open(run, os.O_DIRECTORY)
    for level in range(3000):
        name = f"{level}-" + "n" * 200
        os.mkdir(name, dir_fd=directory)
        os.close(os.open("file", os.O_CREAT | os.O_WRONLY, dir_fd=directory))
        below = os.open(name, os.O_DIRECTORY, dir_fd=directory)
        os.close(directory)
        directory = below
    os.close(directory)
    before = open_descriptors()
    remove_tree(run)
    assert not run.exists()
    assert open_descriptors() == before


def test_wide_trees_are_removed(tmp_path: Path) -> None:
    for number in range(1500):
        (tmp_path / f"run/{number % 40}/{number}/deep").mkdir(parents=True)
    remove_tree(tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_tree_that_changes_meanwhile_is_removed(tmp_path: Path) -> None:
    run = tmp_path / "run"
    for number in range(400):
        (run / f"{number}/sub").mkdir(parents=True)
    stop = threading.Event()

    def change() -> None:
        number = 0
        while not stop.is_set():
            number += 1
            try:
                path = run / f"{number % 400}"
                if number % 3:
                    (path / f"new{number}").mkdir(parents=False)
                else:
                    path.rename(run / f"moved{number}")
            except OSError:
                continue

    thread = threading.Thread(target=change)
    thread.start()
    try:
        time.sleep(0.02)
        remove_tree(run)
    except OSError:
        # A writer that is still at work may win. What counts is that the next attempt finishes the work.
        assert run.exists()
    finally:
        stop.set()
        thread.join()
    remove_tree(run)
    assert not run.exists()


def test_failure_to_remove_is_reported(shared: Path) -> None:
    (shared / "run").mkdir()
    shared.chmod(0o555)
    done = in_child(REMOVE, shared / "run")
    shared.chmod(0o777)
    assert done.returncode == 1
    assert "PermissionError" in done.stderr
