"""Removing the directory of a run or a build, whatever jobs and commands have made of it."""

from __future__ import annotations

import errno
import os
import secrets
import stat
from contextlib import suppress
from pathlib import Path

_PATH_FLAGS = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_MAX_ROUNDS = 50
"""Passes over a directory that keeps filling up while it is emptied."""

_MAX_WAITING = 10_000
"""Names of directories to remove that are kept in memory."""


def remove_tree(path: Path) -> None:
    """Remove `path` and all below it. Nothing happens if it is not there.

    Symbolic links are removed, never followed; directories without permissions are given them first (which takes owning
    them, or root); depth is no limit, and neither is the number of entries: memory and descriptors stay flat. What
    appears meanwhile is removed as well, but end the job's processes first: one that writes faster than this removes
    makes it fail, or wait. Raises OSError for what could not be removed, and may be called again.
    """
    try:
        root = _open(os.fspath(path), None)
    except FileNotFoundError:
        return
    except NotADirectoryError:
        with suppress(FileNotFoundError):
            path.unlink()
        return
    try:
        _empty(root)
    finally:
        os.close(root)
    with suppress(FileNotFoundError):
        path.rmdir()


def _open(name: str, parent: int | None) -> int:
    """A readable descriptor of a directory, after giving its owner all rights. NotADirectoryError for anything else."""
    handle = os.open(name, _PATH_FLAGS, dir_fd=parent)
    try:
        if stat.S_IMODE(os.fstat(handle).st_mode) & 0o700 != 0o700:
            # fchmod refuses O_PATH descriptors; this name of the descriptor leads to the very directory, however it
            # may have been renamed or replaced meanwhile.
            Path(f"/proc/self/fd/{handle}").chmod(0o700)
        return os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=handle)
    finally:
        os.close(handle)


def _empty(root: int) -> None:
    """Remove everything in the directory `root`, in rounds until a round finds nothing."""
    for _ in range(_MAX_ROUNDS):
        found = False
        with os.scandir(root) as entries:
            for entry in entries:
                found = True
                if entry.is_dir(follow_symlinks=False):
                    _remove_directories(entry.name, root)
                else:
                    _unlink(entry.name, root)
        if not found:
            return
    raise OSError(errno.ENOTEMPTY, "The directory keeps filling up while it is removed; end what writes to it first")


def _remove_directories(name: str, root: int) -> None:
    """Remove the subdirectory `name` of `root` with all below it.

    It is not descended into: full subdirectories are moved up into `root` and wait their turn there, so that two
    descriptors suffice for any depth. Those for which there is no room in the list are found by the next round.
    """
    waiting = [name]
    while waiting:
        name = waiting.pop()
        with suppress(FileNotFoundError, NotADirectoryError):
            directory = _open(name, root)
            try:
                _remove_entries(directory, root, waiting)
            finally:
                os.close(directory)
            _rmdir(name, root)


def _remove_entries(directory: int, root: int, waiting: list[str]) -> None:
    """Remove what is in `directory`; move full subdirectories into `root` and add their names there to `waiting`."""
    with os.scandir(directory) as entries:
        for entry in entries:
            if not entry.is_dir(follow_symlinks=False):
                _unlink(entry.name, directory)
                continue
            with suppress(FileNotFoundError, NotADirectoryError):
                moved = _remove_or_move_up(entry.name, directory, root)
                if moved and len(waiting) < _MAX_WAITING:
                    waiting.append(moved)


def _unlink(name: str, directory: int) -> None:
    # Gone or replaced by a directory since it was listed: the next round sees what is there.
    with suppress(FileNotFoundError, IsADirectoryError):
        os.unlink(name, dir_fd=directory)


def _remove_or_move_up(name: str, directory: int, root: int) -> str | None:
    """Remove an empty subdirectory, or move a full one into `root`; its name there."""
    if _rmdir(name, directory):
        return None
    # To move a directory one must be allowed to write to it.
    os.close(_open(name, directory))
    moved = f".removing-{secrets.token_hex(8)}"
    os.rename(name, moved, src_dir_fd=directory, dst_dir_fd=root)
    return moved


def _rmdir(name: str, directory: int) -> bool:
    """Whether the directory was empty and is gone now."""
    try:
        os.rmdir(name, dir_fd=directory)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
        return False
    return True
