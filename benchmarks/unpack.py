"""Bucket → verified directory, against `curl -s URL | tar -xz -C DIR`: `python -m benchmarks.unpack`.

Two bundles: the DuckDB loader (few large files), and one of 14,000 small files; from the embedded S3 server to tmpfs
and to the temporary directory. Ours checks length, SHA-256 and every member before anything is trusted; theirs checks
nothing. `as published` is what the builder packs (zstd); `same bytes` is the .tgz that they read. Measured in turn.
"""

import argparse
import hashlib
import subprocess
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from benchmarks.bundles import duckdb_tree, many_files_tree
from benchmarks.report import compare, machine
from infra.local.servers import create_bucket
from libs.common.archive import ArchiveLimits
from libs.common.objects import ObjectStore
from libs.common.removal import remove_tree
from libs.common.settings import ServiceSettings
from services.builder.packing import pack
from services.runner.extraction import extract_stream
from tests.backend import running_servers


@dataclass(frozen=True)
class Stored:
    """A tarball in the bucket."""

    key: str
    digest: str
    size: int


def _store(objects: ObjectStore, key: str, data: bytes) -> Stored:
    upload = objects.upload(key, content_type="application/octet-stream")
    view = memoryview(data)
    for start in range(0, len(view), 8 * 1024 * 1024):
        upload.part(view[start : start + 8 * 1024 * 1024])
    upload.complete()
    return Stored(key, f"sha256:{hashlib.sha256(data).hexdigest()}", len(data))


def _ours(objects: ObjectStore, stored: Stored, target: Path) -> float:
    started = time.perf_counter()
    with objects.read(stored.key) as body:
        extract_stream(
            body,
            target,
            expected_digest=stored.digest,
            expected_size=stored.size,
            limits=ArchiveLimits(),
            cancelled=lambda: False,
        )
    elapsed = time.perf_counter() - started
    remove_tree(target)
    return elapsed


def _theirs(url: str, target: Path) -> float:
    started = time.perf_counter()
    target.mkdir()
    subprocess.run(
        ["bash", "-c", 'set -o pipefail; curl -s "$1" | tar -xz -C "$2"', "-", url, str(target)],
        check=True,
    )
    elapsed = time.perf_counter() - started
    remove_tree(target)
    return elapsed


def _measure(objects: ObjectStore, name: str, tree: Path, folders: dict[str, Path], rounds: int) -> None:
    gzipped = subprocess.run(["tar", "-czf", "-", "-C", str(tree), "."], check=True, capture_output=True).stdout
    published = _store(objects, f"{name}.tar.zst", b"".join(pack(tree)))
    same = _store(objects, f"{name}.tgz", gzipped)
    url = objects.presigned_url(same.key, expires_seconds=3600, filename="bundle.tgz")
    files = sum(1 for path in tree.rglob("*") if path.is_file())
    print(f"\n{name}: {files} files, {published.size / 1e6:.1f} MB as published, {same.size / 1e6:.1f} MB as .tgz")
    for place, folder in folders.items():
        target = folder / "target"
        times: dict[str, list[float]] = {"published": [], "same": [], "theirs": []}
        for number in range(rounds + 1):
            round_times = {
                "published": _ours(objects, published, target),
                "same": _ours(objects, same, target),
                "theirs": _theirs(url, target),
            }
            if number:  # the first round only warms up
                for key, value in round_times.items():
                    times[key].append(value)
        compare(f"{place}: as published", times["published"], times["theirs"], against="curl | tar -xz")
        compare(f"{place}: same bytes", times["same"], times["theirs"], against="curl | tar -xz")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    rounds = parser.parse_args().rounds
    print(machine())
    with running_servers() as running, tempfile.TemporaryDirectory() as disk:
        create_bucket(
            running.s3_endpoint, access_key=running.access_key, secret_key=running.secret_key, bucket="benchmark"
        )
        objects = ObjectStore(
            ServiceSettings.model_validate(
                {
                    "port": 0,
                    "database_url": running.maintenance_url,
                    "s3_endpoint": running.s3_endpoint,
                    "s3_access_key": running.access_key,
                    "s3_secret_key": running.secret_key,
                    "s3_bucket": "benchmark",
                }
            )
        )
        work = Path(disk)
        with tempfile.TemporaryDirectory(dir="/dev/shm") as memory:  # tmpfs is meant
            folders = {"tmpfs": Path(memory), "temporary directory": work}
            _measure(objects, "DuckDB loader", duckdb_tree(work / "duckdb"), folders, rounds)
            _measure(objects, "14,000 files", many_files_tree(work / "many"), folders, rounds)


if __name__ == "__main__":
    main()
