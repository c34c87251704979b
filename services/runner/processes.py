"""Other processes: who descends from whom, and those that are told by their environment."""

import contextlib
import os
import signal
import time
from pathlib import Path

_ROUNDS = 20
_PAUSE_SECONDS = 0.01


def children_of(pid: int) -> list[int]:
    """The children of all threads of a process; none where it has ended."""
    found: list[int] = []
    with contextlib.suppress(OSError):
        for task in _names(f"/proc/{pid}/task"):
            with contextlib.suppress(OSError):
                found += map(int, Path(f"/proc/{pid}/task/{task}/children").read_bytes().split())
    return found


def count_tasks(uid: int) -> int:
    """Threads and processes of a user, as RLIMIT_NPROC counts them. Blocks some milliseconds."""
    count = 0
    with os.scandir("/proc") as entries:
        for entry in entries:
            with contextlib.suppress(OSError):
                if entry.name.isdigit() and entry.stat().st_uid == uid:
                    count += len(_names(f"{entry.path}/task"))
    return count


def _names(directory: str) -> list[str]:
    with os.scandir(directory) as entries:
        return [entry.name for entry in entries]


def kill_strays(marker: str) -> int:
    """Kill every process in whose first environment a variable begins with `marker`; how many there were.

    That finds what has left its process group, such as a daemon that a job started. Rounds are made until one finds
    nothing new: whoever forks meanwhile hands its environment on. Blocks.
    """
    wanted = marker.encode()
    killed: set[int] = set()
    for _ in range(_ROUNDS):
        found = {pid for pid in _own_processes() if _kill_if(pid, wanted)}
        if not found:
            break
        killed |= found
        time.sleep(_PAUSE_SECONDS)
    return len(killed)


def _kill_if(pid: int, wanted: bytes) -> bool:
    """Kill a process that has `wanted`; whether it had it. The number may meanwhile be another process's."""
    if not _has(pid, wanted):
        return False
    with contextlib.suppress(OSError):
        handle = os.pidfd_open(pid)
        try:
            if _has(pid, wanted):
                signal.pidfd_send_signal(handle, signal.SIGKILL)
        finally:
            os.close(handle)
    return True


def _own_processes() -> list[int]:
    uid = os.getuid()
    found = []
    with os.scandir("/proc") as entries:
        for entry in entries:
            with contextlib.suppress(OSError):
                if entry.name.isdigit() and entry.stat().st_uid == uid and int(entry.name) != os.getpid():
                    found.append(int(entry.name))
    return found


def _has(pid: int, wanted: bytes) -> bool:
    try:
        environment = Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        return False
    return environment.startswith(wanted) or b"\0" + wanted in environment
