"""Workspaces: gone in every case, and never taken from a live builder."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from services.builder.workspace import Workspace, open_workspace, sweep


def _names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


async def test_workspace_is_private_and_gone_afterwards(tmp_path: Path) -> None:
    async with open_workspace(tmp_path, "bld_1") as workspace:
        assert workspace.path.name.startswith("stowage-build-bld_1-")
        assert workspace.path.stat().st_mode & 0o777 == 0o700
        (workspace.home / "locked").mkdir()
        (workspace.home / "locked" / "file").write_text("x")
        (workspace.home / "locked").chmod(0o500)
    assert _names(tmp_path) == []


async def test_workspace_is_gone_after_a_failure_and_after_a_cancellation(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="boom"):
        async with open_workspace(tmp_path, "bld_1"):
            raise ValueError("boom")

    async def hold() -> None:
        async with open_workspace(tmp_path, "bld_2"):
            await asyncio.sleep(60)

    for delay in (0.0, 0.001, 0.01, 0.1):
        task = asyncio.create_task(hold())
        await asyncio.sleep(delay)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    assert _names(tmp_path) == []


async def test_sweep_leaves_what_a_live_builder_holds_and_what_is_not_a_workspace(tmp_path: Path) -> None:
    (tmp_path / "stowage-build-dead-1234").mkdir()
    (tmp_path / "stowage-build-dead-1234" / "file").write_text("x")
    (tmp_path / "stowage-build-a-file").write_text("x")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "stowage-build-a-link").symlink_to(tmp_path / "elsewhere")
    async with open_workspace(tmp_path, "bld_1") as workspace:
        assert sweep(tmp_path) == ["stowage-build-dead-1234"]
        assert workspace.source.parent.is_dir()
    assert _names(tmp_path) == [
        "elsewhere",
        "stowage-build-a-file",
        "stowage-build-a-link",
    ]


def _dig(directory: Path, levels: int) -> None:
    """Make a directory with so many levels that its paths are too long to be used."""
    os.chdir(directory)
    for _ in range(levels):
        Path("deep").mkdir()
        os.chdir("deep")


async def test_workspace_of_any_depth_is_gone_afterwards_and_swept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # so that the test's own directory is restored
    (tmp_path / "stowage-build-dead").mkdir()
    _dig(tmp_path / "stowage-build-dead", 3000)
    os.chdir(tmp_path)
    assert sweep(tmp_path) == ["stowage-build-dead"]
    async with open_workspace(tmp_path, "bld_1") as workspace:
        _dig(workspace.temporary, 3000)
        os.chdir(tmp_path)
    assert _names(tmp_path) == []


def test_sweep_takes_the_workspace_of_a_killed_builder(tmp_path: Path) -> None:
    script = f"""
import pathlib, time
from services.builder.workspace import Workspace
workspace = Workspace(pathlib.Path({str(tmp_path)!r}), "bld_1")
workspace.create()
print("made", flush=True)
time.sleep(600)
"""
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, cwd=Path.cwd()) as builder:
        assert builder.stdout is not None
        assert builder.stdout.readline() == b"made\n"
        assert sweep(tmp_path) == []
        builder.send_signal(signal.SIGKILL)
    assert len(sweep(tmp_path)) == 1
    assert _names(tmp_path) == []


def test_workspace_stays_locked_while_a_process_that_was_given_its_lock_lives(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path, "bld_1")
    workspace.create()
    lock = os.dup(workspace.lock)
    with subprocess.Popen(["sleep", "600"], pass_fds=[lock]) as holder:
        os.close(lock)
        os.close(workspace.lock)  # as if the builder had died
        assert sweep(tmp_path) == []
        holder.kill()
    assert len(sweep(tmp_path)) == 1


def test_making_and_sweeping_at_the_same_time_never_takes_a_workspace_that_is_in_use(tmp_path: Path) -> None:
    script = f"""
import pathlib, time
from services.builder.workspace import sweep
while True: sweep(pathlib.Path({str(tmp_path)!r}))
"""
    with subprocess.Popen([sys.executable, "-c", script], cwd=Path.cwd()) as sweeper:
        deadline = time.monotonic() + 3
        made = 0
        while time.monotonic() < deadline:
            workspace = Workspace(tmp_path, f"bld_{made}")
            workspace.create()
            assert workspace.home.is_dir()
            workspace.remove()
            made += 1
        sweeper.kill()
    assert made > 50
    assert _names(tmp_path) == []
