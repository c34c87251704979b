"""How much a job uses of what no limit of the kernel bounds for all its processes together, sampled while it runs."""

import asyncio
import contextlib
import functools
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
    """What they take.

    Files that were deleted and are still open count, those in memory (memfd_create(2)) as memory. `is_hidden`: there
    are directories that the runner may not look into.
    """

    memory_bytes: int
    processes: int
    disk_bytes: int
    files: int
    is_hidden: bool = False


class _Files:
    """Sizes on disk and in memory, each file once, however many names or descriptors it has."""

    def __init__(self) -> None:
        self._seen: set[tuple[int, int]] = set()
        self.disk_bytes = 0
        self.memory_bytes = 0
        self.count = 0
        self.is_hidden = False

    def add_open(self, pid: int) -> None:
        """Files that a process has open and that have no name any more."""
        with contextlib.suppress(OSError), os.scandir(f"/proc/{pid}/fd") as entries:
            for entry in entries:
                with contextlib.suppress(OSError):
                    found = entry.stat()
                    if found.st_nlink == 0 and stat.S_ISREG(found.st_mode) and self._is_new(found):
                        if found.st_dev == _memory_device():
                            self.memory_bytes += found.st_blocks * _BLOCK_BYTES
                        else:
                            self.disk_bytes += found.st_blocks * _BLOCK_BYTES

    def add_below(self, directories: tuple[Path, ...], limits: JobLimits) -> None:
        """Everything below some directories, until there is more than the limits allow."""
        waiting = [os.fspath(directory) for directory in directories]
        while waiting:
            try:
                with os.scandir(waiting.pop()) as entries:
                    for entry in entries:
                        self.count += 1
                        with contextlib.suppress(OSError):
                            self._add_entry(entry, waiting)
                        if self.count > limits.files or self.disk_bytes > limits.disk_bytes:
                            return
            except PermissionError:
                self.is_hidden = True
            except OSError:
                continue  # it is gone

    def _add_entry(self, entry: os.DirEntry[str], waiting: list[str]) -> None:
        found = entry.stat(follow_symlinks=False)
        if stat.S_ISDIR(found.st_mode):
            waiting.append(entry.path)
            self.disk_bytes += found.st_blocks * _BLOCK_BYTES
        elif found.st_nlink == 1 or self._is_new(found):
            self.disk_bytes += found.st_blocks * _BLOCK_BYTES

    def _is_new(self, found: os.stat_result) -> bool:
        file = (found.st_dev, found.st_ino)
        if file in self._seen:
            return False
        self._seen.add(file)
        return True


class Meter:
    """Measures a run until it uses more than it may."""

    def __init__(self, ancestor: int, directory: RunDirectory, limits: JobLimits) -> None:
        self._ancestor = ancestor
        self._directories = (directory.outputs, directory.tmp, directory.home)
        self.limits = limits

    async def excess(self) -> RunFailed:
        """Return when the run takes more than it may, with what is to be said of it."""
        await asyncio.sleep(_SAMPLE_SECONDS)  # so far nothing of the job's was executed
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
    files = _Files()
    pids = list(_descendants(ancestor, limits.processes + 1))
    if len(pids) > limits.processes:  # each moment counts while they multiply
        return Usage(0, len(pids), 0, 0)
    for pid in pids:
        files.add_open(pid)
    memory = files.memory_bytes + sum(map(_resident_bytes, pids))
    if memory > limits.memory_bytes:  # what processes share was counted for each of them; to be exact takes longer
        memory = files.memory_bytes + sum(map(_proportional_bytes, pids))
    files.add_below(directories, limits)
    return Usage(memory, len(pids), files.disk_bytes, files.count, files.is_hidden)


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
    if usage.is_hidden:
        return RunFailed(
            "files_hidden",
            "The job made a directory that the runner may not look into, so its size can't be told, and was ended. Let "
            "the owner of a directory read and enter it (mode 0700).",
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


def _resident_bytes(pid: int) -> int:
    """Bytes that are the process's own or in shared memory, not mapped files."""
    return _sum_of(f"/proc/{pid}/status", (b"RssAnon:", b"RssShmem:")) or 0


def _proportional_bytes(pid: int) -> int:
    """The same, but of what several processes share its part alone."""
    found = _sum_of(f"/proc/{pid}/smaps_rollup", (b"Pss_Anon:", b"Pss_Shmem:"))
    return _resident_bytes(pid) if found is None else found


def _sum_of(path: str, names: tuple[bytes, ...]) -> int | None:
    """Bytes that a file of proc(5) tells in lines `name: number kB`; None where it can't be read."""
    try:
        lines = Path(path).read_bytes().split(b"\n")
    except OSError:
        return None
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith(names))


@functools.cache
def _memory_device() -> int:
    """The device number of files that memfd_create(2) makes."""
    descriptor = os.memfd_create("stowage", os.MFD_CLOEXEC)
    try:
        return os.fstat(descriptor).st_dev
    finally:
        os.close(descriptor)
