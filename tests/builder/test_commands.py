"""Commands: their output, their end, and that nothing is left of them."""

import asyncio
import os
import signal
import sys
import time
from pathlib import Path

import psutil
import pytest

from services.builder.commands import CommandFailed, Limits, run_command
from tests.builder.waiting import eventually

_LIMITS = Limits(command_seconds=60, grace_seconds=0.5)
_ENVIRONMENT = {"PATH": os.environ["PATH"]}


async def _run(script: str, directory: Path, *, limits: Limits = _LIMITS) -> list[str]:
    lines: list[str] = []
    await run_command(
        [sys.executable, "-c", script],
        directory=directory,
        environment=_ENVIRONMENT,
        limits=limits,
        on_line=lines.append,
    )
    return lines[:-1]  # the last says how long it took


# A child, a child that made itself a daemon in a session of its own, and one that ignores SIGTERM: each writes its pid.
_FAMILY = """
import os, signal, subprocess, sys, time
def note(): open(f"pid-{os.getpid()}", "w").close()
note()
def sleeper(ignore=False):
    if ignore: signal.signal(signal.SIGTERM, signal.SIG_IGN)
    note()
    time.sleep(600)
if os.fork() == 0: sleeper()
if os.fork() == 0: sleeper(ignore=True)
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0: sleeper(ignore=True)
    os._exit(0)
while len([name for name in os.listdir(".") if name.startswith("pid-")]) < 4: time.sleep(0.01)
"""


def _family(directory: Path) -> list[int]:
    return [int(path.name.removeprefix("pid-")) for path in directory.glob("pid-*")]


def _assert_dead(directory: Path) -> None:
    pids = _family(directory)
    assert len(pids) == 4
    assert [pid for pid in pids if psutil.pid_exists(pid)] == []


async def test_lines_of_both_outputs_arrive_and_exit_code_zero_is_success(tmp_path: Path) -> None:
    lines = await _run("import sys; print('out'); print('err', file=sys.stderr); sys.stdout.write('no end')", tmp_path)
    assert sorted(lines) == ["err", "no end", "out"]


async def test_failing_command_tells_its_exit_code_and_its_last_thirty_lines(tmp_path: Path) -> None:
    with pytest.raises(CommandFailed, match="failed with exit code 3") as caught:
        await _run("for n in range(100): print(n, flush=True)\nraise SystemExit(3)", tmp_path)
    assert caught.value.tail == [str(number) for number in range(70, 100)]


async def test_killed_command_tells_the_signal(tmp_path: Path) -> None:
    with pytest.raises(CommandFailed, match="was killed by SIGSEGV"):
        await _run("import os; os.kill(os.getpid(), 11)", tmp_path)


async def test_command_that_does_not_exist_says_so(tmp_path: Path) -> None:
    with pytest.raises(CommandFailed) as caught:
        await run_command(
            ["/nowhere/npm", "ci"], directory=tmp_path, environment={}, limits=_LIMITS, on_line=lambda _: None
        )
    assert "could not be started" in caught.value.tail[0]


async def test_flood_of_stderr_before_anything_on_stdout_does_not_deadlock(tmp_path: Path) -> None:
    script = "import sys\nfor _ in range(200): sys.stderr.write(('e' * 99 + '\\n') * 1000)\nprint('done')"
    async with asyncio.timeout(30):
        lines = await _run(script, tmp_path)
    assert len(lines) == 200_001
    assert "done" in lines


async def test_line_of_megabytes_without_an_end_comes_in_pieces(tmp_path: Path) -> None:
    lines = await _run("import sys; sys.stdout.write('x' * 3_000_000)", tmp_path)
    assert sum(len(line) for line in lines) == 3_000_000
    assert len(lines) > 10


async def test_hung_command_is_ended_with_its_whole_family_also_daemons(tmp_path: Path) -> None:
    started = time.monotonic()
    with pytest.raises(CommandFailed, match="time limit") as caught:
        await _run(_FAMILY + "time.sleep(600)", tmp_path, limits=Limits(command_seconds=4, grace_seconds=0.5))
    assert caught.value.kind == "command-timed-out"
    assert time.monotonic() - started < 20
    _assert_dead(tmp_path)


async def test_command_gets_the_chance_to_end_by_itself(tmp_path: Path) -> None:
    script = """
import signal, sys, time
def leave(*_):
    open("said-goodbye", "w").close()
    sys.exit(0)
signal.signal(signal.SIGTERM, leave)
time.sleep(600)
"""
    with pytest.raises(CommandFailed, match="time limit"):
        await _run(script, tmp_path, limits=Limits(command_seconds=1, grace_seconds=5))
    assert (tmp_path / "said-goodbye").exists()


async def test_what_a_command_leaves_running_is_ended_when_it_succeeds(tmp_path: Path) -> None:
    await _run(_FAMILY, tmp_path)
    _assert_dead(tmp_path)


async def test_cancelled_command_is_gone_when_the_cancellation_arrives(tmp_path: Path) -> None:
    task = asyncio.create_task(_run(_FAMILY + "time.sleep(600)", tmp_path))
    await eventually(lambda: len(_family(tmp_path)) == 4)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    _assert_dead(tmp_path)


async def test_command_dies_with_the_builder_that_was_killed(tmp_path: Path) -> None:
    script = f"""
import asyncio, pathlib, sys
from services.builder.commands import Limits, run_command
command = [sys.executable, "-c", {_FAMILY + "time.sleep(600)"!r}]
directory = pathlib.Path({str(tmp_path)!r})
asyncio.run(run_command(command, directory=directory, environment={{}}, limits=Limits(600, 0.5), on_line=print))
"""
    builder = await asyncio.create_subprocess_exec(sys.executable, "-c", script, env={"PYTHONPATH": str(Path.cwd())})
    await eventually(lambda: len(_family(tmp_path)) == 4)
    builder.send_signal(signal.SIGKILL)
    await builder.wait()
    await eventually(lambda: not any(psutil.pid_exists(pid) for pid in _family(tmp_path)))
    _assert_dead(tmp_path)


async def test_command_sees_the_given_environment_and_nothing_else(tmp_path: Path) -> None:
    lines: list[str] = []
    await run_command(
        ["/usr/bin/env"], directory=tmp_path, environment={"ONE": "1"}, limits=_LIMITS, on_line=lines.append
    )
    assert [line for line in lines[:-1] if not line.startswith("LC_CTYPE=")] == ["ONE=1"]


async def test_command_has_no_descriptors_of_ours(tmp_path: Path) -> None:
    secret = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        lines: list[str] = []
        await run_command(
            [sys.executable, "-c", "import os; print(sorted(os.listdir('/proc/self/fd')))"],
            directory=tmp_path,
            environment={},
            limits=_LIMITS,
            on_line=lines.append,
            keep_open=(secret,),
        )
    finally:
        os.close(secret)
    assert lines[0] == "['0', '1', '2', '3']"  # 3 is the listing's own
