"""The process of a job: its interpreter inside a sandbox, the channels to it, and the end of all that it started.

Four pipes lead to it: standard output and error, whose lines are only ever log lines, a control channel, and a channel
for events. Nothing that a job does to them can make the runner wait, or remember more than a few lines.
"""

import asyncio
import contextlib
import errno
import json
import os
import resource
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from services.runner.lines import LineReader
from services.runner.processes import count_tasks, kill_strays
from services.runner.sandbox.cgroups import ControlGroup, memory_kills
from services.runner.sandbox.layers import Handshake, Wrapped

MAX_LINE_BYTES = 16 * 1024
"""Longer lines of output come in pieces."""

_DRAIN_SECONDS = 2.0
_SETUP_SECONDS = 20.0
_END_SECONDS = 10.0
_EARLY_LINES = 100
_MAX_HANDSHAKE_BYTES = 4096
_CPU_GRACE_SECONDS = 5
_ROOM_FOR_OTHERS = 2048  # processes that one job may start before the meter ends it, and others of its user still can
_NICENESS = 5  # below the services, so that a lease is renewed however busy the jobs are

OnLine = Callable[[bytes], None]
Wrap = Callable[[Sequence[str], Handshake], Wrapped]


@dataclass(frozen=True, slots=True)
class ProcessLimits:
    """What the kernel holds each process of a job to (getrlimit(2)).

    `data_bytes` bounds writable private memory: V8 reserves far more address space than it uses, so RLIMIT_AS would
    break it. `processes` does not bind root.
    """

    data_bytes: int
    processes: int
    file_bytes: int
    open_files: int
    cpu_seconds: int


@dataclass(frozen=True, slots=True)
class Listeners:
    """Who is told what a job says; each is called with one line, without its end."""

    stdout: OnLine
    stderr: OnLine
    event: OnLine


class JobProcess:
    """A confined process with no environment but what it is given. What it says is kept until somebody attends."""

    def __init__(self, popen: "subprocess.Popen[bytes]", marker: str, group: ControlGroup | None) -> None:
        self._popen = popen
        self._marker = marker
        self._group = group
        self._pidfd = os.pidfd_open(popen.pid)
        self._first: _First | None = None
        self._code: int | None = None
        self.ran_out_of_memory = False
        self._kills_before = memory_kills()
        self._ended = asyncio.Event()
        self._control: asyncio.WriteTransport | None = None
        self._readers: list[LineReader] = []
        self._listeners: Listeners | None = None
        self._early: deque[tuple[str, bytes]] = deque(maxlen=_EARLY_LINES)
        asyncio.get_running_loop().add_reader(self._pidfd, self._has_ended)

    @classmethod
    async def start(
        cls,
        wrap: Wrap,
        *,
        directory: Path,
        environment: Mapping[str, str],
        marker: str,
        limits: ProcessLimits,
        max_event_bytes: int,
        group: ControlGroup | None = None,
    ) -> Self:
        """Start what `wrap` makes of two more arguments: the descriptors of the control and the event channel.

        The limits are set before anything of the job's is executed. `marker` begins a variable of the environment that
        no other job has. With a control group everything ends that is in it, and it is removed, when this is closed.
        OSError when it can't be started, with what the sandbox said.
        """
        pipes = {name: os.pipe() for name in ("control", "event", "stdout", "stderr", "info", "block")}
        theirs = [pipes["control"][0], *(pipes[name][1] for name in ("event", "stdout", "stderr", "info"))]
        theirs.append(pipes["block"][0])
        ours = [pipes["control"][1], *(pipes[name][0] for name in ("event", "stdout", "stderr"))]
        info, block = pipes["info"][0], pipes["block"][1]
        handshake = Handshake(pipes["info"][1], pipes["block"][0])
        wrapped = wrap([str(theirs[0]), str(theirs[1])], handshake)
        try:
            popen = subprocess.Popen(  # noqa: ASYNC220  # returns when the program is loaded, some milliseconds
                wrapped.command,
                cwd=directory,
                env=dict(environment),
                stdin=subprocess.DEVNULL,
                stdout=theirs[2],
                stderr=theirs[3],
                pass_fds=(theirs[0], theirs[1], handshake.info, handshake.block, *wrapped.descriptors),
                start_new_session=True,
            )
        except OSError:
            for descriptor in (*ours, info, block):
                os.close(descriptor)
            raise
        finally:
            for descriptor in (*theirs, *wrapped.descriptors):
                os.close(descriptor)
        process = cls(popen, marker, group)
        try:
            await process._connect(ours, max_event_bytes)
            await process._shake_hands(info, block, wrapped, limits)
        except BaseException:
            await process.close()
            raise
        finally:
            os.close(info)
            os.close(block)
        return process

    @property
    def has_ended(self) -> bool:
        """Whether it has ended."""
        return self._ended.is_set()

    @property
    def ancestor(self) -> int:
        """The process that all others of the job descend from."""
        return self._popen.pid

    def attend(self, listeners: Listeners) -> None:
        """Tell `listeners` what the job says from now on, and first what it has said already."""
        self._listeners = listeners
        while self._early:
            name, line = self._early.popleft()
            getattr(listeners, name)(line)

    def send(self, message: Mapping[str, Any]) -> None:
        """Send a line of control. A process that has ended does not mind."""
        if self._control is not None and not self._control.is_closing():
            self._control.write(json.dumps(message).encode() + b"\n")

    def terminate(self) -> None:
        """Send SIGTERM to the job's interpreter and its process group."""
        if self._first is not None:
            self._first.terminate()

    def kill(self) -> None:
        """End everything that the job has started."""
        if self._first is None:
            self._popen.kill()
        else:
            self._first.kill()

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
        self.kill()
        if not await self.ended(_END_SECONDS):
            self._popen.kill()
            await self._ended.wait()
        if self._first is not None:
            await self._first.gone()
            if not self._first.contained:
                await asyncio.to_thread(kill_strays, self._marker)
        if self._group is not None:
            self.ran_out_of_memory = self._group.ran_out_of_memory()
            self._group.kill()
            await asyncio.to_thread(self._group.remove)
        loop = asyncio.get_running_loop()
        loop.remove_reader(self._pidfd)
        os.close(self._pidfd)
        code = self._popen.wait()  # it has ended: nothing to wait for
        if code in (-signal.SIGKILL, 128 + signal.SIGKILL) and memory_kills() > self._kills_before:
            self.ran_out_of_memory = True
        # Somebody may have handed a pipe on to a process that is none of ours.
        if self._readers:
            await asyncio.wait([reader.at_end for reader in self._readers], timeout=_DRAIN_SECONDS)
        for reader in self._readers:
            reader.close()
        if self._control is not None and not self._control.is_closing():
            self._control.abort()
        # Both kinds of first process end so for a signal; a job that chooses such a code can't be told from it.
        return 128 - code if 128 < code <= 128 + signal.SIGRTMAX else code

    async def _connect(self, ours: Sequence[int], max_event_bytes: int) -> None:
        loop = asyncio.get_running_loop()
        transport, _ = await loop.connect_write_pipe(asyncio.BaseProtocol, os.fdopen(ours[0], "wb", 0))
        self._control = transport
        for name, descriptor, max_bytes, cut in (
            ("event", ours[1], max_event_bytes, False),
            ("stdout", ours[2], MAX_LINE_BYTES, True),
            ("stderr", ours[3], MAX_LINE_BYTES, True),
        ):
            reader = LineReader(lambda line, name=name: self._hear(name, line), max_bytes, cut=cut)  # type: ignore[misc]
            await loop.connect_read_pipe(lambda reader=reader: reader, os.fdopen(descriptor, "rb", 0))  # type: ignore[misc]
            self._readers.append(reader)

    async def _shake_hands(self, info: int, block: int, wrapped: Wrapped, limits: ProcessLimits) -> None:
        """Learn the job's first process, limit it, and let it go on."""
        try:
            async with asyncio.timeout(_SETUP_SECONDS):
                pid = await self._read_child(info)
        except TimeoutError:
            raise OSError(errno.ETIMEDOUT, "the sandbox was not set up in time") from None
        self._first = _First(pid, contained=wrapped.contained)
        with contextlib.suppress(ProcessLookupError):  # it has died at once; that is found soon enough
            if self._group is not None:
                self._group.add(pid)
            limit_process(pid, limits, alone=wrapped.contained)
            os.setpriority(os.PRIO_PROCESS, pid, _NICENESS)
        with contextlib.suppress(BrokenPipeError):  # the same
            os.write(block, b"1")

    async def _read_child(self, info: int) -> int:
        data = b""
        loop = asyncio.get_running_loop()
        readable = asyncio.Event()
        os.set_blocking(info, False)  # takes no keyword
        loop.add_reader(info, readable.set)
        try:
            while len(data) < _MAX_HANDSHAKE_BYTES:
                await readable.wait()
                readable.clear()
                try:
                    piece = os.read(info, _MAX_HANDSHAKE_BYTES)
                except BlockingIOError:
                    continue
                data += piece
                with contextlib.suppress(ValueError):
                    return int(json.loads(data)["child-pid"])
                if not piece:
                    break
        finally:
            loop.remove_reader(info)
        await self.ended(_DRAIN_SECONDS)
        await asyncio.wait([reader.at_end for reader in self._readers], timeout=_DRAIN_SECONDS)
        said = " ".join(line.decode("utf-8", "replace") for name, line in self._early if name == "stderr")
        raise OSError(errno.EPERM, said[:500] or "the sandbox ended before it was set up")

    def _hear(self, name: str, line: bytes) -> None:
        if self._listeners is None:
            self._early.append((name, line))
        else:
            getattr(self._listeners, name)(line)

    def _has_ended(self) -> None:
        asyncio.get_running_loop().remove_reader(self._pidfd)
        self._ended.set()


class _First:
    """The process that was told of in the handshake.

    It leads a session. Contained in a PID namespace it is the first of that, with which all others end, and the job's
    interpreter is its child; otherwise it is the interpreter itself.
    """

    def __init__(self, pid: int, *, contained: bool) -> None:
        self._pid = pid
        self.contained = contained
        try:
            self._handle: int | None = os.pidfd_open(pid)
        except OSError:
            self._handle = None  # it has ended already

    def terminate(self) -> None:
        if self._is_alive():  # the first process of a namespace, which leads the group then, is deaf to it
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._pid, signal.SIGTERM)

    def kill(self) -> None:
        if self._is_alive() and self._handle is not None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                if not self.contained:
                    os.killpg(self._pid, signal.SIGKILL)
                signal.pidfd_send_signal(self._handle, signal.SIGKILL)

    async def gone(self) -> None:
        """Wait until it has ended, and with a namespace everything in it."""
        if self._handle is not None:
            loop, ended = asyncio.get_running_loop(), asyncio.Event()
            loop.add_reader(self._handle, ended.set)
            try:
                async with asyncio.timeout(_END_SECONDS):
                    await ended.wait()
            except TimeoutError:
                pass
            finally:
                loop.remove_reader(self._handle)
                os.close(self._handle)
                self._handle = None

    def _is_alive(self) -> bool:
        """Whether the number is still its own: a handle can only be signalled while the process lives."""
        if self._handle is None:
            return False
        try:
            signal.pidfd_send_signal(self._handle, 0)
        except ProcessLookupError:
            return False
        return True


def limit_process(pid: int, limits: ProcessLimits, *, alone: bool) -> None:
    """Hold a process, and all that it will start, to `limits`. `alone`: no others of its user count with it."""
    values = {
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_DATA: limits.data_bytes,
        resource.RLIMIT_NPROC: limits.processes + (0 if alone else count_tasks(os.getuid()) + _ROOM_FOR_OTHERS),
        resource.RLIMIT_FSIZE: limits.file_bytes,
        resource.RLIMIT_NOFILE: limits.open_files,
        resource.RLIMIT_CPU: limits.cpu_seconds,
    }
    for kind, value in values.items():
        _, hard = resource.prlimit(pid, kind)
        bound = value if hard == resource.RLIM_INFINITY else min(value, hard)
        # At the soft limit of CPU time comes a signal that says so, at the hard one SIGKILL, which does not.
        above = bound + _CPU_GRACE_SECONDS if kind == resource.RLIMIT_CPU else bound
        resource.prlimit(pid, kind, (bound, above if hard == resource.RLIM_INFINITY else min(above, hard)))


if sys.platform != "linux":  # pragma: no cover
    raise ImportError("the runner needs Linux: it relies on pidfd_open(2) and prlimit(2)")
