"""Which sandbox a runner chooses: it falls to what works, believes nothing untried, and else does not start."""

import sys
from pathlib import Path
from typing import Any

import pytest

from services.runner.sandbox.bubblewrap import Bubblewrap
from services.runner.sandbox.ladder import SandboxUnavailable, choose_sandbox, find_bubblewrap
from services.runner.sandbox.layers import Level, Program, Sandbox
from services.runner.scratch import Scratch
from tests.backend import Backend
from tests.registry.running import RunningRegistry
from tests.runner.running import runner_process

_PYTHON = Program(Path(sys.executable).resolve(), (Path(sys.base_prefix),))
_REAL = find_bubblewrap(None)


def _program(path: Path, script: str) -> Path:
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return path


async def _choose(tmp_path: Path, wanted: Level | None, minimum: Level, bubblewrap: Path | None) -> Sandbox:
    scratch = Scratch.open(tmp_path / "scratch")
    try:
        return await choose_sandbox(wanted, minimum, bubblewrap, _PYTHON, scratch)
    finally:
        scratch.close()
        assert list((tmp_path / "scratch").iterdir()) == []


async def test_the_strongest_is_taken_first(tmp_path: Path) -> None:
    assert (await _choose(tmp_path, None, Level.LIMITS, _REAL)).level is Level.BUBBLEWRAP
    for level in Level:
        assert (await _choose(tmp_path, level, Level.LIMITS, _REAL)).level is level


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        ("echo 'bwrap: No permissions to create new namespace' >&2; exit 1", "bwrap: No permissions to create"),
        ("exit 0", "the sandbox ended before it was set up"),
        ("kill -9 $$", "the sandbox ended before it was set up"),
    ],
)
async def test_an_unfit_bubblewrap_is_passed_over_or_refused(tmp_path: Path, script: str, reason: str) -> None:
    broken = _program(tmp_path / "bwrap", script)
    assert (await _choose(tmp_path, None, Level.LANDLOCK, broken)).level is Level.LANDLOCK
    with pytest.raises(SandboxUnavailable) as refused:
        await _choose(tmp_path, None, Level.BUBBLEWRAP, broken)
    assert str(refused.value).startswith(
        "jobs can't be confined as STOWAGE_RUNNER_SANDBOX_MINIMUM wants it (bubblewrap at least): bubblewrap: "
    )
    assert reason in str(refused.value)
    assert "Install bubblewrap and allow user namespaces" in str(refused.value)
    with pytest.raises(SandboxUnavailable, match="STOWAGE_RUNNER_SANDBOX=bubblewrap wants it"):
        await _choose(tmp_path, Level.BUBBLEWRAP, Level.LANDLOCK, broken)


async def test_a_bubblewrap_that_is_not_there_is_named(tmp_path: Path) -> None:
    for path in (None, tmp_path / "none"):
        with pytest.raises(SandboxUnavailable, match=r"bubblewrap: (the program bwrap was not found|No such file)"):
            await _choose(tmp_path, Level.BUBBLEWRAP, Level.LANDLOCK, path)
        assert (await _choose(tmp_path, None, Level.LANDLOCK, path)).level is Level.LANDLOCK


@pytest.mark.parametrize(
    ("dropped", "held"),
    [
        ("--unshare-net", "reaches the network"),
        ("--remount-ro", "changes the kernel"),
    ],
)
async def test_a_sandbox_that_does_not_hold_is_refused(tmp_path: Path, dropped: str, held: str) -> None:
    """A bubblewrap that forgets one of its arguments."""
    leaky = tmp_path / "bwrap"
    leaky.write_text(
        f"#!{sys.executable}\n"
        "import os, sys\n"
        "kept, rest = [], sys.argv[1:]\n"
        "while rest:\n"
        "    argument = rest.pop(0)\n"
        f"    if argument != {dropped!r}:\n"
        "        kept.append(argument)\n"
        "    elif argument == '--remount-ro':\n"
        "        rest.pop(0)\n"
        f"os.execv({str(_REAL)!r}, ['bwrap', *kept])\n"
    )
    leaky.chmod(0o755)
    with pytest.raises(SandboxUnavailable) as refused:
        await _choose(tmp_path, Level.BUBBLEWRAP, Level.LANDLOCK, leaky)
    assert "it does not hold what it should: " in str(refused.value), refused.value
    assert held in str(refused.value)


async def test_a_runner_that_can_not_confine_jobs_says_so_and_ends(
    shared_backend: Backend, registry: RunningRegistry, tmp_path: Path
) -> None:
    wanted: dict[str, Any] = {"sandbox": "bubblewrap", "bubblewrap": tmp_path / "none"}
    with pytest.raises(RuntimeError, match="it ended with code 2: ") as ended:
        async with runner_process(shared_backend, registry, tmp_path / "scratch", **wanted):
            pass
    assert "the runner can't start: jobs can't be confined as STOWAGE_RUNNER_SANDBOX=bubblewrap" in str(ended.value)
    assert "Traceback" not in str(ended.value)


def test_bubblewrap_is_what_was_configured_or_what_is_there(tmp_path: Path) -> None:
    assert find_bubblewrap(tmp_path) == tmp_path
    assert _REAL is not None
    assert Bubblewrap(_REAL).level is Level.BUBBLEWRAP
