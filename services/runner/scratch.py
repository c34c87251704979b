"""Where runs live while they run: a directory each, gone afterwards in every case.

The bundle, whose size is known, is unpacked into memory (tmpfs) where there is room; what a job writes, whose size
nobody knows, goes to the disk.

A runner has a directory of its own below each place that it uses, beside a file `<name>.lock` that it keeps locked
(flock). What belongs to a runner that was killed is recognised by a lock that can be had, and swept.
All of it blocks; it belongs in a worker thread.
"""

import contextlib
import fcntl
import os
import secrets
import shutil
import stat
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from libs.common.log import get_logger
from libs.common.removal import remove_tree
from services.runner.processes import kill_strays

_TMPFS = Path("/dev/shm")  # noqa: S108  # world-writable, hence the directory in it is checked
_MARGIN_BYTES = 512 * 1024 * 1024
_LOCK_SUFFIX = ".lock"
_log = get_logger("runner")


class ScratchError(Exception):
    """No directory can be had for runs; the message says why."""


@dataclass(frozen=True, slots=True)
class RunDirectory:
    """The directory of one attempt: `bundle` is what was unpacked, all else is below `root`."""

    root: Path
    bundle: Path

    @property
    def inputs(self) -> Path:
        """Outputs of other runs."""
        return self.root / "inputs"

    @property
    def outputs(self) -> Path:
        """What the run leaves."""
        return self.root / "outputs"

    @property
    def tmp(self) -> Path:
        """For whatever the job likes."""
        return self.root / "tmp"

    @property
    def home(self) -> Path:
        """An empty home."""
        return self.root / "home"

    @property
    def marker(self) -> str:
        """What the environment of every process of the attempt contains, unless the process took care to lose it."""
        return f"HOME={self.home}"


class Scratch:
    """The directories of one runner."""

    def __init__(self, places: list["_Place"]) -> None:
        self._places = places

    @classmethod
    def open(cls, directory: Path | None) -> Self:
        """Take possession of `directory`, or by default of tmpfs and the temporary directory, and sweep both."""
        if directory is not None:
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            return cls([_Place.open(directory.resolve(), private=False)])
        bases = [base.resolve() for base in (_TMPFS, Path(tempfile.gettempdir())) if base.is_dir()]
        name = f"stowage-{os.getuid()}"
        return cls([_Place.open(base / name, private=True) for base in dict.fromkeys(bases)])

    def sweep(self) -> None:
        """Remove what runners left that are gone, and end what still runs there. `open` does so, too."""
        for place in self._places:
            _sweep(place.root.parent)

    def close(self) -> None:
        """Give everything up."""
        for place in self._places:
            place.close()

    def has_room(self, run: RunDirectory, bundle_bytes: int) -> bool:
        """Whether a bundle that unpacks to `bundle_bytes` has room in a directory that was made without asking."""
        return run.bundle.parent == run.root or _has_room(run.bundle, bundle_bytes)

    @contextlib.contextmanager
    def run_directory(self, name: str, *, bundle_bytes: int = 0) -> Iterator[RunDirectory]:
        """A fresh directory; the bundle's is in the first place with room for it twice over, else in the last place."""
        disk = self._places[-1]
        place = next((place for place in self._places if _has_room(place.root, bundle_bytes)), disk)
        root = disk.root / name
        run = RunDirectory(root, root / "bundle" if place is disk else place.root / name)
        root.mkdir(mode=0o700)
        try:
            for directory in (run.bundle, run.inputs, run.outputs, run.tmp, run.home):
                directory.mkdir(mode=0o755)
            yield run
        finally:
            for directory in dict.fromkeys((run.bundle, root)):
                try:
                    remove_tree(directory)
                except OSError as error:
                    _log.warning("scratch_not_removed", directory=str(directory), error=str(error))


class _Place:
    """One runner's directory below one parent."""

    def __init__(self, root: Path, lock_path: Path, lock: int, *, private: bool) -> None:
        self.root = root
        self._lock_path = lock_path
        self._lock = lock
        self._private = private

    @classmethod
    def open(cls, parent: Path, *, private: bool) -> "_Place":
        """A directory below `parent`. A private parent is ours to make, and must be ours alone."""
        while True:
            if private:
                _make_private(parent)
            _sweep(parent)
            root = parent / f"runner-{secrets.token_hex(6)}"
            lock_path = root.with_name(root.name + _LOCK_SUFFIX)
            try:
                lock = os.open(lock_path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            except FileNotFoundError:
                if private:
                    continue  # the last runner that used it has just removed it
                raise
            if _try_lock(lock) and lock_path.exists():
                root.mkdir(mode=0o700)
                return cls(root, lock_path, lock, private=private)
            os.close(lock)  # somebody who sweeps was faster, and took it for a dead runner's

    def close(self) -> None:
        remove_tree(self.root)
        self._lock_path.unlink(missing_ok=True)
        os.close(self._lock)
        if self._private:
            with contextlib.suppress(OSError):  # others still use it
                self.root.parent.rmdir()


def _has_room(directory: Path, bundle_bytes: int) -> bool:
    return shutil.disk_usage(directory).free >= 2 * bundle_bytes + _MARGIN_BYTES


def _sweep(parent: Path) -> None:
    for lock_path in parent.glob(f"runner-*{_LOCK_SUFFIX}"):
        with contextlib.suppress(FileNotFoundError):
            lock = os.open(lock_path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
            try:
                if _try_lock(lock):
                    root = lock_path.with_name(lock_path.name.removesuffix(_LOCK_SUFFIX))
                    killed = kill_strays(f"HOME={root}/")
                    remove_tree(root)
                    lock_path.unlink(missing_ok=True)
                    _log.info("scratch_swept", directory=str(root), killed=killed)
            finally:
                os.close(lock)


def _try_lock(lock: int) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _make_private(path: Path) -> None:
    """Make `path`, which nobody but us may enter. Where all may write, somebody could have made it before."""
    with contextlib.suppress(FileExistsError):
        path.mkdir(mode=0o700)
    found = path.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or stat.S_IMODE(found.st_mode) & 0o077:
        raise ScratchError(
            f"{path} is not a directory of this user alone. Remove it, or say where runs shall live: "
            "STOWAGE_RUNNER_SCRATCH_DIR."
        )
