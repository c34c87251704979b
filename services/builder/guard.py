"""Stands over one command of a build, as a program of its own: `python -I -S guard.py GRACE_SECONDS command…`.

The guard runs the command in a session and process group of its own and ends with its exit code (128 + n for signal n).
Its standard input is a line to the builder: when that closes, because the builder asks to stop or because it died, the
command and all that it started get SIGTERM, and SIGKILL when the grace is over. Nothing survives the command in any
case: on Linux the guard is the reaper of whatever the command leaves behind, also when that has made itself a daemon.
"""

import contextlib
import ctypes
import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

_PR_SET_CHILD_SUBREAPER = 36
_LINE = 0  # standard input
_KILL_SECONDS = 10.0
_NOT_STARTED = 127


class _Command:
    def __init__(self, arguments: list[str]) -> None:
        process = subprocess.Popen(arguments, stdin=subprocess.DEVNULL, start_new_session=True)
        process.returncode = 0  # it is ours to reap, together with what it leaves behind
        self.pid = process.pid
        self.code: int | None = None
        self.alone = False

    def reap(self) -> None:
        """Collect every process that has ended; `alone` is set when none is left."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                self.alone = True
                return
            if pid == 0:
                return
            if pid == self.pid:
                code = os.waitstatus_to_exitcode(status)
                self.code = code if code >= 0 else 128 - code

    def signal(self, number: int) -> None:
        """Send a signal to the group, and to every descendant that has left it."""
        if self.code is None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.pid, number)
        for pid in _descendants():
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, number)


def main() -> int:
    grace_seconds, arguments = float(sys.argv[1]), sys.argv[2:]
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    wake_read, wake_write = os.pipe()
    os.set_blocking(wake_write, False)
    signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    stop_asked = []
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda *_: stop_asked.append(True))
    try:
        command = _Command(arguments)
    except OSError as error:
        sys.stderr.write(f"{arguments[0]} could not be started: {error.strerror}\n")
        return _NOT_STARTED
    _wait(command, wake_read, stop_asked)
    if command.code is None:
        _end_gently(command, grace_seconds)
    _kill_the_rest(command)
    return command.code if command.code is not None else 128 + signal.SIGKILL


def _wait(command: _Command, wake: int, stop_asked: list[bool]) -> None:
    """Return when the command has ended, or when it shall."""
    while not stop_asked:
        command.reap()
        if command.code is not None:
            return
        ready, _, _ = select.select([_LINE, wake], [], [])
        if wake in ready:
            os.read(wake, 4096)
        if _LINE in ready and not os.read(_LINE, 1):
            return


def _end_gently(command: _Command, grace_seconds: float) -> None:
    command.signal(signal.SIGTERM)
    deadline = time.monotonic() + grace_seconds
    while time.monotonic() < deadline:
        command.reap()
        if command.alone:
            return
        time.sleep(0.02)


def _kill_the_rest(command: _Command) -> None:
    deadline = time.monotonic() + _KILL_SECONDS
    while time.monotonic() < deadline:
        command.reap()
        if command.alone:
            return
        command.signal(signal.SIGKILL)
        time.sleep(0.01)


def _descendants() -> list[int]:
    """Every process below this one; none where there is no /proc."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError, ValueError):
            # The name, in parentheses, may hold anything, also parentheses and spaces.
            parent = int(entry.read_bytes().rpartition(b")")[2].split()[1])
            children.setdefault(parent, []).append(int(entry.parent.name))
    found: list[int] = []
    waiting = [os.getpid()]
    while waiting:
        below = children.get(waiting.pop(), [])
        found += below
        waiting += below
    return found


if __name__ == "__main__":
    sys.exit(main())
