"""How much a job uses of what no limit of the kernel bounds for all its processes together, sampled while it runs."""

import asyncio
import contextlib
import os
import stat
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from services.runner.endings import RunFailed
from services.runner.limits import JobLimits
from services.runner.processes import children_of
from services.runner.scratch import RunDirectory

_SAMPLE_SECONDS = 0.2
_SHARE = 10  # the part of the time that sampling may take is one in so many
_BLOCK_BYTES = 512  # of st_blocks, see stat(2)
_MIB = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Usage:
    """What they take. `disk_bytes` includes files that were deleted and are still open."""

    memory_bytes: int
    processes: int
    disk_bytes: int
    files: int


class Meter:
    """Measures a run until it uses more than it may."""

    def __init__(self, ancestor: int, directory: RunDirectory, limits: JobLimits) -> None:
        self._ancestor = ancestor
        self._directories = (directory.outputs, directory.tmp, directory.home)
        self.limits = limits

    async def excess(self) -> RunFailed:
        """Return when the run takes more than it may, with what is to be said of it."""
        while True:
            begun = time.monotonic()
            usage = await asyncio.to_thread(measure, self._ancestor, self._directories, self.limits)
            if (failure := judge(usage, self.limits)) is not None:
                return failure
            await asyncio.sleep(max(_SAMPLE_SECONDS, _SHARE * (time.monotonic() - begun)))


def measure(ancestor: int, directories: tuple[Path, ...], limits: JobLimits) -> Usage:
    """What the descendants of a process and the files below `directories` take; blocks.

    It counts no further than somewhat above `limits`.
    """
    memory = disk = processes = files = 0
    for pid in _descendants(ancestor, limits.processes + 1):
        processes += 1
        memory += _memory_of(pid)
        disk += _deleted_files_of(pid)
    for size in _sizes_below(directories):
        disk += size
        files += 1
        if files > limits.files or disk > limits.disk_bytes:
            break
    return Usage(memory, processes, disk, files)


def judge(usage: Usage, limits: JobLimits) -> RunFailed | None:
    """What is wrong with the usage, if anything is."""
    if usage.memory_bytes > limits.memory_bytes:
        return memory_exceeded(limits)
    if usage.processes > limits.processes:
        return RunFailed(
            "processes_exceeded",
            f"The job had more than {limits.processes} processes, which is the limit, and was ended. Start fewer at a "
            "time, or raise “processes” in the job's limits.",
        )
    if usage.disk_bytes > limits.disk_bytes:
        return RunFailed(
            "disk_exceeded",
            f"The job's files took more than {_mib(limits.disk_bytes)}, which is the limit, and it was ended. Write "
            "less, delete what is done with, or raise “diskBytes” in the job's limits.",
        )
    if usage.files > limits.files:
        return RunFailed(
            "files_exceeded",
            f"The job made more than {limits.files} files and directories, which is the limit, and was ended. Put "
            "what belongs together into one file.",
        )
    return None


def memory_exceeded(limits: JobLimits) -> RunFailed:
    """What is to be said of a job that took more memory than it may."""
    return RunFailed(
        "memory_exceeded",
        f"The job's processes used more than {_mib(limits.memory_bytes)} of memory together, which is the limit, and "
        "were ended. Process less at a time, or raise “memoryBytes” in the job's limits.",
    )


def _mib(size: int) -> str:
    return f"{size / _MIB:.0f} MiB"


def _descendants(ancestor: int, limit: int) -> Iterator[int]:
    """Up to `limit` processes below one, which is not counted: it is the sandbox's own."""
    waiting, found = children_of(ancestor), 0
    while waiting and found < limit:
        pid = waiting.pop()
        found += 1
        yield pid
        waiting += children_of(pid)


def _memory_of(pid: int) -> int:
    """Bytes that are the process's own or in shared memory, not mapped files."""
    total = 0
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_bytes().split(b"\n"):
            if line.startswith((b"RssAnon:", b"RssShmem:")):
                total += int(line.split()[1]) * 1024
    return total


def _deleted_files_of(pid: int) -> int:
    total = 0
    with contextlib.suppress(OSError), os.scandir(f"/proc/{pid}/fd") as entries:
        for entry in entries:
            with contextlib.suppress(OSError):
                found = entry.stat()
                if found.st_nlink == 0 and stat.S_ISREG(found.st_mode):
                    total += found.st_blocks * _BLOCK_BYTES
    return total


def _sizes_below(directories: tuple[Path, ...]) -> Iterator[int]:
    waiting = [os.fspath(directory) for directory in directories]
    while waiting:
        with contextlib.suppress(OSError), os.scandir(waiting.pop()) as entries:
            for entry in entries:
                with contextlib.suppress(OSError):
                    yield entry.stat(follow_symlinks=False).st_blocks * _BLOCK_BYTES
                    if entry.is_dir(follow_symlinks=False):
                        waiting.append(entry.path)
