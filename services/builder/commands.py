"""Commands of a build: their output line by line, a time limit, and nothing left of them afterwards."""

import asyncio
import contextlib
import os
import shlex
import signal
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from libs.common.errors import StowageError

_GUARD = Path(__file__).with_name("guard.py")
_TAIL_LINES = 30
_READ_BYTES = 64 * 1024
_MAX_LINE_BYTES = 64 * 1024
_KILL_SECONDS = 15.0
_PIPE_SECONDS = 2.0

OnLine = Callable[[str], None]


class CommandFailed(StowageError):
    """A command ended with an error, or was ended because it took too long. `tail` holds its last lines."""

    kind = "command-failed"

    def __init__(self, message: str, *, kind: str, tail: Sequence[str]) -> None:
        super().__init__(message, kind=kind)
        self.tail = list(tail)


@dataclass(frozen=True, slots=True)
class Limits:
    """How long a command may take, and how long it may take to end when it is asked to."""

    command_seconds: float
    grace_seconds: float


async def run_command(
    command: Sequence[str],
    *,
    directory: Path,
    environment: Mapping[str, str],
    limits: Limits,
    on_line: OnLine,
    keep_open: Sequence[int] = (),
) -> None:
    """Run a command to its end; every line of both its outputs goes to `on_line`.

    It sees `environment` and nothing else of ours. When this returns or raises, also by cancellation, neither the
    command nor anything that it started is running. `keep_open` are descriptors that its guard holds open as long.
    Raises CommandFailed.
    """
    tail = _Tail()

    def keep(line: str) -> None:
        tail.add(line)
        on_line(line)

    shown = shlex.join([Path(command[0]).name, *command[1:]])
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-I", "-S", str(_GUARD), str(limits.grace_seconds), *command),
        cwd=directory,
        env=dict(environment),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        start_new_session=True,
        pass_fds=keep_open,
    )
    # Both at once: a program that fills one pipe while the other is being read to its end would wait for ever.
    readers = [asyncio.create_task(_read_lines(stream, keep)) for stream in (process.stdout, process.stderr) if stream]
    started = time.monotonic()
    timed_out = False
    try:
        async with asyncio.timeout(limits.command_seconds):
            await process.wait()
    except TimeoutError:
        timed_out = True
    finally:
        await _end(process, readers, limits.grace_seconds)
    if timed_out:
        raise CommandFailed(
            f"“{shown}” was ended after {limits.command_seconds:g} seconds, which is the time limit of a command. "
            "See what it waited for in the log, or give it more time (STOWAGE_BUILDER_COMMAND_SECONDS).",
            kind="command-timed-out",
            tail=tail.lines,
        )
    if process.returncode:
        raise CommandFailed(f"“{shown}” {_ended(process.returncode)}.", kind="command-failed", tail=tail.lines)
    on_line(f"“{shown}” took {time.monotonic() - started:.1f} s")


class _Tail:
    """The last lines, without the page of help that npm puts after its reason when a lock file does not match."""

    def __init__(self) -> None:
        self.lines: deque[str] = deque(maxlen=_TAIL_LINES)
        self._help = False

    def add(self, line: str) -> None:
        self._help = line.startswith("npm error") and (self._help or line == "npm error Usage:")
        if not self._help:
            self.lines.append(line)


def _ended(code: int) -> str:
    if code > 128 and code - 128 in signal.valid_signals():
        return f"was killed by {signal.Signals(code - 128).name}"
    return f"failed with exit code {code}"


async def _end(
    process: asyncio.subprocess.Process, readers: Sequence["asyncio.Task[None]"], grace_seconds: float
) -> None:
    """Let go of the guard's line, wait for it to have ended everything, and for the last lines."""
    if process.stdin is not None:
        process.stdin.close()
    try:
        async with asyncio.timeout(grace_seconds + _KILL_SECONDS):
            await process.wait()
    except TimeoutError:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        await process.wait()
    _, waiting = await asyncio.wait(readers, timeout=_PIPE_SECONDS)
    for reader in waiting:
        reader.cancel()
    await asyncio.gather(*readers, return_exceptions=True)


async def _read_lines(stream: asyncio.StreamReader, on_line: OnLine) -> None:
    """Every line, without its end; one that is too long for a line comes in pieces."""
    rest = b""
    while data := await stream.read(_READ_BYTES):
        *lines, rest = (rest + data).split(b"\n")
        for line in lines:
            on_line(_text(line))
        while len(rest) > _MAX_LINE_BYTES:
            on_line(_text(rest[:_MAX_LINE_BYTES]))
            rest = rest[_MAX_LINE_BYTES:]
    if rest:
        on_line(_text(rest))


def _text(line: bytes) -> str:
    return line.decode("utf-8", "replace").rstrip("\r")
