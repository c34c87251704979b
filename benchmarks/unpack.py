"""Bucket → verified directory: `python -m benchmarks.unpack`.

Two bundles, the DuckDB loader (few large files) and one of 14,000 small files, from the embedded S3 server to tmpfs and
to the temporary directory. Ours checks length, SHA-256 and every member before anything is trusted; they check nothing:

- `curl -s URL | tar -xz -C DIR` of the same tree as .tgz;
- the floor: `tar -xf` of the same tree, neither compressed nor fetched but from the page cache.

`as published` is what the builder packs (zstd); `same bytes` is the .tgz that curl reads. All four are measured in
turn. On disk nothing is removed before the end: ext4 passes over what was deleted in the last minutes one by one when
it looks for free inodes, and would make everybody equally slow.

Then the memory that unpacking a bundle of 2 GB takes in a process that has done it with a small one before: packed as
by the builder, and as a single zstd frame.
"""

import argparse
import hashlib
import multiprocessing
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

from benchmarks.bundles import duckdb_tree, many_files_tree, two_gigabytes
from benchmarks.report import compare, machine
from infra.local.servers import create_bucket
from libs.common.objects import ObjectStore
from libs.common.removal import remove_tree
from libs.common.settings import ServiceSettings
from services.builder.packing import pack
from services.runner.extraction import extract_stream
from tests.backend import running_servers
from tests.servers import Servers

_BUCKET = "benchmark"
_FLOOR_TARGET = 1.8
_MEMORY_TARGET_MB = 64


@dataclass(frozen=True)
class Stored:
    """A tarball in the bucket."""

    key: str
    digest: str
    size: int


@dataclass(frozen=True)
class Place:
    """Where trees are unpacked to, and whether they are removed only when all is measured."""

    name: str
    folder: Path
    keeps: bool


def _objects(running: Servers) -> ObjectStore:
    return ObjectStore(
        ServiceSettings.model_validate(
            {
                "port": 0,
                "database_url": running.maintenance_url,
                "s3_endpoint": running.s3_endpoint,
                "s3_access_key": running.access_key,
                "s3_secret_key": running.secret_key,
                "s3_bucket": _BUCKET,
            }
        )
    )


def _store(objects: ObjectStore, key: str, chunks: Iterable[bytes]) -> Stored:
    upload = objects.upload(key, content_type="application/octet-stream")
    digest, size, part = hashlib.sha256(), 0, bytearray()
    for chunk in chunks:
        digest.update(chunk)
        size += len(chunk)
        part += chunk
        if len(part) >= 8 * 1024 * 1024:
            upload.write(bytes(part))
            part.clear()
    if part:
        upload.write(bytes(part))
    upload.complete()
    return Stored(key, f"sha256:{digest.hexdigest()}", size)


def _ours(objects: ObjectStore, stored: Stored, target: Path) -> None:
    with objects.read(stored.key) as body:
        extract_stream(body, target, expected_digest=stored.digest, expected_size=stored.size)


def _curl_and_tar(url: str, target: Path) -> None:
    target.mkdir()
    script = 'set -o pipefail; curl -s "$1" | tar -xz -C "$2"'
    subprocess.run(["bash", "-c", script, "-", url, str(target)], check=True)


def _tar(archive: Path, target: Path) -> None:
    target.mkdir()
    subprocess.run(["tar", "-xf", str(archive), "-C", str(target)], check=True)


def _measure(place: Place, ways: dict[str, Callable[[Path], None]], rounds: int) -> dict[str, list[float]]:
    """Seconds that each way took in each round, in turn; the first round only warms up."""
    times: dict[str, list[float]] = {name: [] for name in ways}
    trees = []
    for number in range(rounds + 1):
        for name, way in ways.items():
            target = place.folder / f"{number}-{name}"
            trees.append(target)
            started = time.perf_counter()
            way(target)
            if number:
                times[name].append(time.perf_counter() - started)
            if not place.keeps:
                remove_tree(target)
    for tree in trees:
        remove_tree(tree)
    return times


def _compare(objects: ObjectStore, name: str, tree: Path, places: list[Place], rounds: int, target: float) -> None:
    archive = tree.with_suffix(".tar")
    subprocess.run(["tar", "-cf", archive, "-C", tree, "."], check=True)
    gzipped = subprocess.run(["gzip", "-c", archive], check=True, capture_output=True).stdout
    published = _store(objects, f"{name}.tar.zst", pack(tree))
    same = _store(objects, f"{name}.tgz", [gzipped])
    url = objects.presigned_url(same.key, expires_seconds=3600, filename="bundle.tgz")
    files = sum(1 for path in tree.rglob("*") if path.is_file())
    print(f"\n{name}: {files} files, {published.size / 1e6:.1f} MB as published, {same.size / 1e6:.1f} MB as .tgz")
    ways: dict[str, Callable[[Path], None]] = {
        "published": lambda folder: _ours(objects, published, folder),
        "same": lambda folder: _ours(objects, same, folder),
        "curl": lambda folder: _curl_and_tar(url, folder),
        "floor": lambda folder: _tar(archive, folder),
    }
    for place in places:
        times = _measure(place, ways, rounds)
        for ours, label in (("published", "as published"), ("same", "same bytes")):
            row = f"{place.name}: {label}"
            compare(row, times[ours], times["curl"], against="curl | tar -xz", target=f"at most {target:.2f}")
            compare(row, times[ours], times["floor"], against="tar -xf (floor)", target=f"at most {_FLOOR_TARGET:.2f}")


def _memory_kb(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1])
    raise LookupError(field)


def _unpack_alone(running: Servers, small: Stored, large: Stored, folder: Path, answer: Connection) -> None:
    """In a process of its own: its memory in kB after unpacking `small`, and at most while it unpacks `large`."""
    objects = _objects(running)
    _ours(objects, small, folder / "small")
    idle = _memory_kb("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    _ours(objects, large, folder / "large")
    answer.send((idle, _memory_kb("VmHWM")))
    for name in ("small", "large"):
        remove_tree(folder / name)


def _measure_memory(running: Servers, objects: ObjectStore, small_tree: Path, folder: Path) -> None:
    small = _store(objects, "small.tar.zst", pack(small_tree))
    for framed, label in ((True, "as the builder packs them"), (False, "in one zstd frame")):
        large = _store(objects, "large.tar.zst", two_gigabytes(framed=framed))
        receiver, sender = multiprocessing.Pipe(duplex=False)
        process = multiprocessing.get_context("spawn").Process(
            target=_unpack_alone, args=(running, small, large, folder, sender)
        )
        process.start()
        sender.close()
        idle, peak = receiver.recv()
        process.join()
        print(
            f"\nmemory while {large.size / 1e9:.1f} GB are unpacked, {label}: idle {idle / 1024:.0f} MB, "
            f"peak {peak / 1024:.0f} MB   difference {(peak - idle) / 1024:.0f} MB   target {_MEMORY_TARGET_MB}"
        )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    rounds = parser.parse_args().rounds
    print(machine())
    with (
        running_servers() as running,
        tempfile.TemporaryDirectory() as disk,
        tempfile.TemporaryDirectory(dir="/dev/shm") as memory,  # tmpfs is meant
    ):
        create_bucket(running.s3_endpoint, access_key=running.access_key, secret_key=running.secret_key, bucket=_BUCKET)
        objects, work = _objects(running), Path(disk)
        places = [Place("tmpfs", Path(memory), keeps=False), Place("temporary directory", work, keeps=True)]
        few, many = duckdb_tree(work / "duckdb"), many_files_tree(work / "many")
        _compare(objects, "DuckDB loader", few, places, rounds, target=0.30)
        _compare(objects, "14,000 files", many, places, rounds, target=0.45)
        _measure_memory(running, objects, few, work)


if __name__ == "__main__":
    main()
