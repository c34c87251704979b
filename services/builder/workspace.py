"""Workspaces: the directories that builds happen in, and that are gone afterwards.

A workspace is locked (flock on the directory) by the builder that made it and by the guards of its commands, for as
long as one of them lives: the kernel lets go of the lock when the last of them has died, however that happened. So a
sweep knows what belongs to a live builder, also across containers that share a temporary directory.
"""

import fcntl
import os
import secrets
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from libs.common.completion import in_thread
from libs.common.log import get_logger
from libs.common.removal import remove_tree

_log = get_logger("builder")

_PREFIX = "stowage-build-"
_DIRECTORY_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW


class Workspace:
    """The directory of one build: what it is made from, and a place for everything its commands write."""

    def __init__(self, base: Path, build_id: str) -> None:
        self._base = base
        self._build_id = build_id
        self._lock: int | None = None
        self.path = self._new_path()

    @property
    def source(self) -> Path:
        """The copy of the source, which becomes the bundle."""
        return self.path / "source"

    @property
    def home(self) -> Path:
        """HOME of the commands."""
        return self.path / "home"

    @property
    def temporary(self) -> Path:
        """TMPDIR of the commands."""
        return self.path / "tmp"

    @property
    def npm_cache(self) -> Path:
        """npm's download cache, unless the settings name another."""
        return self.path / "npm"

    @property
    def programs(self) -> Path:
        """First in PATH of the commands."""
        return self.path / "bin"

    @property
    def lock(self) -> int:
        """The descriptor that holds the lock."""
        if self._lock is None:
            raise RuntimeError("the workspace is not there")
        return self._lock

    def create(self) -> None:
        """Make it, readable by nobody else, and lock it."""
        while self._lock is None:
            self.path.mkdir(mode=0o700)
            self._lock = _try_lock(self.path)
            if self._lock is None:  # a sweep took it for an abandoned one
                self.path = self._new_path()
        for directory in (self.home, self.temporary, self.npm_cache, self.programs):
            directory.mkdir()

    def remove(self) -> None:
        """Remove it with all that is in it, and unlock it. Nothing happens if it is not there."""
        try:
            remove_tree(self.path)
        finally:
            if self._lock is not None:
                os.close(self._lock)
                self._lock = None

    def _new_path(self) -> Path:
        return self._base / f"{_PREFIX}{self._build_id}-{secrets.token_hex(4)}"


@asynccontextmanager
async def open_workspace(base: Path | None, build_id: str) -> AsyncIterator[Workspace]:
    """A fresh workspace below `base`, or below the system's temporary directory; removed in every case."""
    workspace = Workspace(base or Path(tempfile.gettempdir()), build_id)
    try:
        await in_thread(workspace.create)
        yield workspace
    finally:
        try:
            await in_thread(workspace.remove)
        except OSError as error:  # what was built is built; a sweep will try again
            _log.warning("workspace_not_removed", path=str(workspace.path), error=str(error))


def sweep(base: Path | None) -> list[str]:
    """Remove the workspaces that no living builder holds; returns their names."""
    swept: list[str] = []
    for path in (base or Path(tempfile.gettempdir())).glob(f"{_PREFIX}*"):
        lock = _try_lock(path)
        if lock is None:
            continue
        try:
            if os.fstat(lock).st_uid == os.geteuid():
                remove_tree(path)
                swept.append(path.name)
        except OSError as error:
            _log.warning("workspace_not_removed", path=str(path), error=str(error))
        finally:
            os.close(lock)
    return swept


def _try_lock(path: Path) -> int | None:
    """A descriptor that locks the directory; None if somebody else has it, or if it is gone or no directory."""
    try:
        descriptor = os.open(path, _DIRECTORY_FLAGS)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        here, there = os.fstat(descriptor), path.lstat()
        if (here.st_dev, here.st_ino) == (there.st_dev, there.st_ino):
            return descriptor
    except OSError:
        pass
    os.close(descriptor)
    return None
