"""Copying a source: what people wrote, without what tools made of it."""

import os
import socket
from pathlib import Path

import pytest

from libs.common.errors import Unprocessable
from services.builder.copying import copy_source


def _write(path: Path, text: str = "x") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def _files(directory: Path) -> list[str]:
    return sorted(str(path.relative_to(directory)) for path in directory.rglob("*") if not path.is_dir())


def test_what_tools_made_stays_behind_wherever_it_is(tmp_path: Path) -> None:
    source = tmp_path / "source"
    kept = ["manifest.json", "src/index.ts", ".npmrc", ".config/tool.json", "packages/one/src/index.ts"]
    left = [
        "node_modules/ms/index.js", "dist/index.js", "packages/one/node_modules/ms/index.js", "packages/one/dist/a.js",
        ".git/HEAD", ".cache/a", ".turbo/a", ".next/a", "src/__pycache__/a.pyc", "tsconfig.tsbuildinfo",
        "build.tsbuildinfo", ".DS_Store", ".venv/bin/python", "coverage/index.html",
    ]  # fmt: skip
    for name in kept + left:
        _write(source / name)
    assert copy_source(source, tmp_path / "target") == len(kept)
    assert _files(tmp_path / "target") == sorted(kept)


def test_a_program_stays_a_program_and_a_link_inside_stays_a_link(tmp_path: Path) -> None:
    source = tmp_path / "source"
    _write(source / "bin/run.sh")
    (source / "bin/run.sh").chmod(0o4755)
    (source / "bin/read-only").write_text("x")
    (source / "bin/read-only").chmod(0o444)
    (source / "start").symlink_to("bin/run.sh")
    copy_source(source, tmp_path / "target")
    assert (tmp_path / "target/bin/run.sh").stat().st_mode & 0o7777 == 0o755
    assert (tmp_path / "target/bin/read-only").stat().st_mode & 0o200
    assert (tmp_path / "target/start").readlink() == Path("bin/run.sh")


@pytest.mark.parametrize("target", ["/etc/passwd", "../../secret", "../src/../../secret", "../loop/../../secret"])
def test_a_link_that_leads_out_is_refused_by_name(tmp_path: Path, target: str) -> None:
    source = tmp_path / "source"
    _write(tmp_path / "secret")
    _write(source / "src/index.ts")
    (source / "loop").symlink_to("src")
    (source / "src" / "link").symlink_to(target)
    with pytest.raises(Unprocessable, match=r"src/link is a link that leads out of the source"):
        copy_source(source, tmp_path / "target")


def test_a_link_over_another_link_that_leads_out_is_refused(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (tmp_path / "outside").mkdir()
    (source / "a").symlink_to(tmp_path / "outside")
    (source / "b").symlink_to("a/file")
    with pytest.raises(Unprocessable, match="leads out of the source"):
        copy_source(source, tmp_path / "target")


def test_what_is_no_file_is_refused_without_being_read(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    os.mkfifo(source / "pipe")
    with pytest.raises(Unprocessable, match="pipe is neither a file"):
        copy_source(source, tmp_path / "target")
    (source / "pipe").unlink()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(source / "s"))
        with pytest.raises(Unprocessable, match="s is neither a file"):
            copy_source(source, tmp_path / "again")
