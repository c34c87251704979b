"""What processes have cost, by what Linux counts of them."""

import contextlib
import os
from pathlib import Path

_TICKS = os.sysconf("SC_CLK_TCK")


def cpu_seconds(pid: int) -> float:
    """CPU time that a process has used, all its threads together."""
    return sum(map(int, _fields(pid)[11:13])) / _TICKS


def cpu_seconds_of_family(pid: int) -> float:
    """CPU time that a process and its children have used, also those that have ended."""
    while True:
        children = _children(pid)
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # one has ended: its time is its parent's now
            seconds = sum(map(int, _fields(pid)[11:15])) / _TICKS + sum(map(cpu_seconds, children))
            if _children(pid) == children:
                return seconds


def parent_of(pid: int) -> int:
    """The process that started this one."""
    return int(_fields(pid)[1])


def _children(pid: int) -> list[int]:
    return [
        int(child) for task in Path(f"/proc/{pid}/task").iterdir() for child in (task / "children").read_text().split()
    ]


def _fields(pid: int) -> list[str]:
    """What `/proc/<pid>/stat` says from the third field on: state, parent, …"""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
