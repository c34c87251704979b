"""The process of a job: its interpreter, the channels to it, and the end of all that it started.

Four pipes lead to it: standard output and error, whose lines are only ever log lines, a control channel, and a channel
for events. Nothing that a job does to them can make the runner wait, or remember more than a few lines.
"""

import asyncio
import contextlib
import json
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from services.runner.processes import kill_strays

MAX_LINE_BYTES = 16 * 1024
"""Longer lines of output come in pieces."""

_READ_BYTES = 8 * 1024
"""How much is taken from a pipe in one go: its lines are worked on while nothing else is."""

_DRAIN_SECONDS = 2.0

OnLine = Callable[[bytes], None]


@dataclass(frozen=True, slots=True)
class ProcessLimits:
    """What the kernel holds a process to (getrlimit(2)).

    `data_bytes` bounds writable private memory: V8 reserves far more address space than it uses, so RLIMIT_AS would
    break it. `processes` counts all of the user's and does not bind root.
    """

    data_bytes: int
    processes: int
    file_bytes: int
    open_files: int


@dataclass(frozen=True, slots=True)
class Listeners:
    """Who is told what a job says; each is called with one line, without its end."""

    stdout: OnLine
    stderr: OnLine
    event: OnLine


class JobProcess:
    """A process in a session of its own, with no environment but what it is given."""

    def __init__(self, popen: "subprocess.Popen[bytes]", marker: str) -> None:
        self._popen = popen
        self._marker = marker
        self._pidfd = os.pidfd_open(popen.pid)
        self._code: int | None = None
        self._ended = asyncio.Event()
        self._control: asyncio.WriteTransport | None = None
        self._readers: list[_LineReader] = []
        asyncio.get_running_loop().add_reader(self._pidfd, self._has_ended)

    @classmethod
    async def start(
        cls,
        command: Sequence[str],
        *,
        directory: Path,
        environment: Mapping[str, str],
        marker: str,
        limits: ProcessLimits,
        listeners: Listeners,
        max_event_bytes: int,
    ) -> Self:
        """Start `command` with two more arguments: the descriptors of its control and event channels.

        The limits are set from outside, once it runs: it waits for its first control line before it does anything of
        the job's. `marker` begins a variable of `environment` that no other job has. OSError when it can't be started.
        """
        pipes = {name: os.pipe() for name in ("control", "event", "stdout", "stderr")}
        theirs = [pipes["control"][0], pipes["event"][1], pipes["stdout"][1], pipes["stderr"][1]]
        ours = [pipes["control"][1], pipes["event"][0], pipes["stdout"][0], pipes["stderr"][0]]
        try:
            popen = subprocess.Popen(  # noqa: ASYNC220  # returns when the program is loaded, some milliseconds
                [*command, str(theirs[0]), str(theirs[1])],
                cwd=directory,
                env=dict(environment),
                stdin=subprocess.DEVNULL,
                stdout=theirs[2],
                stderr=theirs[3],
                pass_fds=theirs[:2],
                start_new_session=True,
            )
        except OSError:
            for descriptor in ours:
                os.close(descriptor)
            raise
        finally:
            for descriptor in theirs:
                os.close(descriptor)
        process = cls(popen, marker)
        try:
            _limit(popen.pid, limits)
            await process._connect(ours, listeners, max_event_bytes)
        except BaseException:
            await process.close()
            raise
        return process

    @property
    def pid(self) -> int:
        """Its number, which is also that of its process group."""
        return self._popen.pid

    @property
    def has_ended(self) -> bool:
        """Whether it has ended."""
        return self._ended.is_set()

    def send(self, message: Mapping[str, Any]) -> None:
        """Send a line of control. A process that has ended does not mind."""
        if self._control is not None and not self._control.is_closing():
            self._control.write(json.dumps(message).encode() + b"\n")

    def signal(self, number: signal.Signals) -> None:
        """Signal the process group. Until `close`, the number can't be another group's: the process is not reaped."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._popen.pid, number)

    async def ended(self, timeout_seconds: float | None = None) -> bool:
        """Wait until the process has ended; False where it has not within the time."""
        try:
            async with asyncio.timeout(timeout_seconds):
                await self._ended.wait()
        except TimeoutError:
            return False
        return True

    async def close(self) -> int:
        """End whatever is left of it, read what it still said, and return its exit code, negative for a signal."""
        if self._code is None:
            self._code = await self._close()
        return self._code

    async def _close(self) -> int:
        self.signal(signal.SIGKILL)
        await self._ended.wait()
        self.signal(signal.SIGKILL)  # what was forked in between; the group lives as long as its leader is not reaped
        await asyncio.to_thread(kill_strays, self._marker)
        loop = asyncio.get_running_loop()
        loop.remove_reader(self._pidfd)
        os.close(self._pidfd)
        code = await asyncio.to_thread(self._popen.wait)
        # Somebody may have handed a pipe on to a process that is none of ours.
        if self._readers:
            await asyncio.wait([reader.at_end for reader in self._readers], timeout=_DRAIN_SECONDS)
        for reader in self._readers:
            reader.close()
        if self._control is not None and not self._control.is_closing():
            self._control.abort()
        return code

    async def _connect(self, ours: Sequence[int], listeners: Listeners, max_event_bytes: int) -> None:
        loop = asyncio.get_running_loop()
        transport, _ = await loop.connect_write_pipe(asyncio.BaseProtocol, os.fdopen(ours[0], "wb", 0))
        self._control = transport
        for descriptor, on_line, max_bytes, cut in (
            (ours[1], listeners.event, max_event_bytes, False),
            (ours[2], listeners.stdout, MAX_LINE_BYTES, True),
            (ours[3], listeners.stderr, MAX_LINE_BYTES, True),
        ):
            reader = _LineReader(on_line, max_bytes, cut=cut)
            await loop.connect_read_pipe(lambda reader=reader: reader, os.fdopen(descriptor, "rb", 0))  # type: ignore[misc]
            self._readers.append(reader)

    def _has_ended(self) -> None:
        asyncio.get_running_loop().remove_reader(self._pidfd)
        self._ended.set()


class _LineReader(asyncio.Protocol):
    """Splits what comes into lines. A line that is too long comes in pieces, or is dropped but for its beginning."""

    def __init__(self, on_line: OnLine, max_bytes: int, *, cut: bool) -> None:
        self._on_line = on_line
        self._max_bytes = max_bytes
        self._cut = cut
        self._rest = bytearray()
        self._dropping = False
        self._transport: asyncio.BaseTransport | None = None
        self.at_end: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        transport.max_size = _READ_BYTES  # type: ignore[attr-defined]
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        start = 0
        while (end := data.find(b"\n", start)) >= 0:
            self._take(data[start:end])
            self._finish_line()
            start = end + 1
        self._take(data[start:])

    def connection_lost(self, _error: Exception | None) -> None:
        if self._rest:
            self._finish_line()
        if not self.at_end.done():
            self.at_end.set_result(None)

    def close(self) -> None:
        """Read nothing more."""
        if self._transport is not None:
            self._transport.close()

    def _take(self, piece: bytes) -> None:
        if self._dropping:
            return
        self._rest += piece
        while len(self._rest) > self._max_bytes:
            self._on_line(bytes(self._rest[: self._max_bytes]))
            if not self._cut:
                self._dropping = True
                self._rest.clear()
                return
            del self._rest[: self._max_bytes]

    def _finish_line(self) -> None:
        if not self._dropping:
            self._on_line(bytes(self._rest))
        self._dropping = False
        self._rest.clear()


def _limit(pid: int, limits: ProcessLimits) -> None:
    values = {
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_DATA: limits.data_bytes,
        resource.RLIMIT_NPROC: limits.processes,
        resource.RLIMIT_FSIZE: limits.file_bytes,
        resource.RLIMIT_NOFILE: limits.open_files,
    }
    for kind, value in values.items():
        _, hard = resource.prlimit(pid, kind)
        bound = value if hard == resource.RLIM_INFINITY else min(value, hard)
        with contextlib.suppress(ProcessLookupError):  # it has died at once; that is found soon enough
            resource.prlimit(pid, kind, (bound, bound))


if sys.platform != "linux":  # pragma: no cover
    raise ImportError("the runner needs Linux: it relies on pidfd_open(2) and prlimit(2)")
