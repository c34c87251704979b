"""Control groups, version 2 (cgroups(7)): a job's processes bounded together by the kernel, and ended together.

They are used where the runner has a control group to itself and may divide it: as a systemd service with
`Delegate=yes`, or in a container with a writable one. Everywhere else the meter and the sandbox do without.
"""

import contextlib
import os
import time
from pathlib import Path

from libs.common.log import get_logger

_CONTROLLERS = ("memory", "pids")
_OWN = "runner"
_VERSION_1 = Path("/sys/fs/cgroup/memory/memory.oom_control")
_PREFIX = "job-"
_REMOVAL_SECONDS = 2.0
_PAUSE_SECONDS = 0.005
_log = get_logger("runner")


class ControlGroup:
    """The control group of one job."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def add(self, pid: int) -> None:
        """Take in a process, and with it whatever it will start. OSError where that is refused."""
        _write(self._path / "cgroup.procs", pid)

    def kill(self) -> None:
        """End every process in it (Linux 5.14)."""
        with contextlib.suppress(OSError):
            _write(self._path / "cgroup.kill", 1)

    def ran_out_of_memory(self) -> bool:
        """Whether the kernel ended a process of it for want of memory."""
        with contextlib.suppress(OSError):
            counts = dict(line.split() for line in (self._path / "memory.events").read_text().splitlines())
            return int(counts.get("oom_kill", 0)) > 0
        return False

    def remove(self) -> None:
        """Remove it, as soon as its last process is gone. Blocks."""
        deadline = time.monotonic() + _REMOVAL_SECONDS
        while True:
            try:
                self._path.rmdir()
            except FileNotFoundError:
                return
            except OSError as error:
                if time.monotonic() > deadline:
                    _log.warning("cgroup_not_removed", path=str(self._path), error=error.strerror)
                    return
                time.sleep(_PAUSE_SECONDS)
            else:
                return


class ControlGroups:
    """The runner's own control group, divided: one part for itself, and one for each job."""

    def __init__(self, root: Path, controllers: frozenset[str]) -> None:
        self._root = root
        self.controllers = controllers

    @classmethod
    def claim(cls) -> "ControlGroups | None":
        """Divide the control group that this process is alone in; None where there is none, or it is not ours."""
        root = _own_group()
        if root is None or not (root / "cgroup.type").exists():  # none, or the machine's
            return None
        try:
            if {int(pid) for pid in (root / "cgroup.procs").read_text().split()} != {os.getpid()}:
                return None
            (root / _OWN).mkdir(exist_ok=True)
            _write(root / _OWN / "cgroup.procs", os.getpid())
            for left in root.glob(f"{_PREFIX}*"):
                ControlGroup(left).kill()
                ControlGroup(left).remove()
            found = set((root / "cgroup.controllers").read_text().split()).intersection(_CONTROLLERS)
            _write(root / "cgroup.subtree_control", " ".join(f"+{name}" for name in sorted(found)))
        except OSError as error:
            _log.info("cgroup_not_divided", path=str(root), error=error.strerror)
            return None
        return cls(root, frozenset(found))

    def create(self, name: str, *, memory_bytes: int, processes: int) -> ControlGroup:
        """A control group for one job. OSError where it can't be made."""
        path = self._root / f"{_PREFIX}{name}"
        path.mkdir()
        if "memory" in self.controllers:
            _write(path / "memory.max", memory_bytes)
            with contextlib.suppress(FileNotFoundError):  # a kernel without swap accounting
                _write(path / "memory.swap.max", 0)
        if "pids" in self.controllers:
            _write(path / "pids.max", processes)
        return ControlGroup(path)


def memory_kills() -> int:
    """How many processes the kernel has ended so far since the control group that we are in had no memory left.

    In a container that is the container's; version 1 is read as well, since clusters still have it.
    """
    own = _own_group()
    for path in (*((own / "memory.events",) if own is not None else ()), _VERSION_1):
        with contextlib.suppress(OSError):
            counts = dict(line.split() for line in path.read_text().splitlines())
            return int(counts.get("oom_kill", 0))
    return 0


def _own_group() -> Path | None:
    place = next(
        (line[3:] for line in Path("/proc/self/cgroup").read_text().splitlines() if line.startswith("0::")), None
    )
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        before, _, after = line.partition(" - ")
        root, point = before.split()[3:5]
        if after.startswith("cgroup2 ") and place is not None and Path(place).is_relative_to(root):
            return Path(point) / Path(place).relative_to(root)
    return None


def _write(path: Path, value: object) -> None:
    path.write_text(f"{value}\n")
