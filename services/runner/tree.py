"""Writing the members of an archive below a fresh directory.

Nothing here follows a symbolic link or resolves a path of more than one component: every file is created with
`O_NOFOLLOW | O_CREAT | O_EXCL` relative to the open descriptor of its directory, and links are made last.
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from libs.common.archive import Entry, EntryType, quoted

_DIRECTORY_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE_FLAGS = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE_MODE, _EXECUTABLE_MODE, _DIRECTORY_MODE = 0o644, 0o755, 0o755
_WORTH_SHARING = 16
"""Files in a batch from which on a second thread may be woken."""

_TRIALS = 3
"""Batches that are written in either way before it is known which one is faster."""

_MAX_LEFT = 16
"""Directories that are kept open for files that wait to be written."""

_FULL = {errno.ENOSPC, errno.EDQUOT}


class ExtractionError(Exception):
    """The tree could not be written. `errno` is the system's number for it, or None; `member` the path if known."""

    def __init__(self, message: str, code: int | None = None, member: str | None = None) -> None:
        super().__init__(message)
        self.errno = code
        self.member = member


@dataclass(slots=True)
class _File:
    """A regular file to create, `name` in the open `directory`; `content` where all of it is at hand."""

    directory: int
    name: str
    mode: int
    path: str
    content: memoryview | bytes = b""


_NO_FILE = _File(-1, "", 0, "")


class _Pace:
    """Whether two threads write files faster than one.

    Creating files is the kernel's work, which two processors share well where it takes long. Where it is quick, the two
    threads get in each other's way with Python's lock, which both give up and take back for each call. Which of both
    holds depends on the machine and its file systems: the first batches are written in turn, the others as was faster.
    """

    def __init__(self) -> None:
        self._seconds_per_file: dict[bool, list[float]] = {True: [], False: []}

    def shares(self) -> bool:
        """Whether the next batch is for two threads."""
        alone, shared = self._seconds_per_file[False], self._seconds_per_file[True]
        if len(alone) < _TRIALS:
            return len(shared) < len(alone)
        if len(shared) < _TRIALS:
            return True
        return min(shared) < min(alone)

    def note(self, *, shared: bool, files: int, seconds: float) -> None:
        """A batch was written."""
        noted = self._seconds_per_file[shared]
        if len(noted) < _TRIALS:
            noted.append(seconds / files)


class TreeExtractor:
    """An EntrySink that writes what it is told below `destination`.

    `destination` is created (its parent must exist), or must be an empty directory. Modes become 755 or 644. Files that
    come in one piece are collected and written by `flush`, with two threads where that is faster. Until then they are
    kept in memory. `finish` writes what is left and makes the links; without it there are none. Closing releases the
    descriptors, one for each level of the tree and a few more, and removes nothing. Raises ExtractionError.
    """

    def __init__(self, destination: Path) -> None:
        self.files = 0
        self.directories = 0
        self.links = 0
        self._file = _NO_FILE  # the one that was begun
        self._size = 0
        self._descriptor = -1  # of the file that was begun, when it comes in several pieces
        self._batch: list[_File] = []
        self._left: list[int] = []  # directories that files of the batch still need
        self._second = ThreadPoolExecutor(1, thread_name_prefix="unpack")
        self._pace = _Pace()
        self._known: set[str] = {""}
        self._deferred: list[Entry] = []
        self._names: list[str] = []  # the directory that is open, component by component
        self._descriptors: list[int] = []  # the root's, then one for each of `_names`
        self._parent = ""
        try:
            self._set_modes = self._open_root(destination)
        except OSError as error:
            self.close()
            raise _failure(error) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def begin(self, entry: Entry) -> None:
        """Start a member. Directories are made now, links remembered."""
        path = entry.path
        if entry.type is EntryType.FILE:
            parent, _, name = path.rpartition("/")
            if parent != self._parent:
                self._enter(parent, path)
            mode = _EXECUTABLE_MODE if entry.executable else _FILE_MODE
            self._file = _File(self._descriptors[-1], name, mode, path)
            self._size = entry.size
            self.files += 1
        elif entry.type is EntryType.DIRECTORY:
            self._enter(path, path)
        else:
            self._deferred.append(entry)

    def data(self, chunk: memoryview) -> None:
        """Take a piece of the file that was begun."""
        file = self._file
        if len(chunk) == self._size:
            file.content = chunk
            return
        try:
            if self._descriptor < 0:
                self._descriptor = self._create(file)
            _write(self._descriptor, chunk)
        except OSError as error:
            raise _failure(error, file.path) from error

    def end(self) -> None:
        """End the file that was begun."""
        file, self._file = self._file, _NO_FILE
        if self._descriptor < 0:
            self._batch.append(file)
            return
        descriptor, self._descriptor = self._descriptor, -1
        try:
            os.close(descriptor)
        except OSError as error:
            raise _failure(error, file.path) from error

    def flush(self) -> None:
        """Write the files that were collected."""
        batch, self._batch = self._batch, []
        if len(batch) < _WORTH_SHARING:
            self._write_files(iter(batch))
        else:
            begun, shares = time.perf_counter(), self._pace.shares()
            if shares:
                self._write_shared(iter(batch))
            else:
                self._write_files(iter(batch))
            self._pace.note(shared=shares, files=len(batch), seconds=time.perf_counter() - begun)
        self._close_left()

    def finish(self) -> None:
        """Make the links: hard links first, so that nothing is written once a symbolic link exists."""
        self.flush()
        for make, kind in ((self._make_hardlink, EntryType.HARDLINK), (self._make_symlink, EntryType.SYMLINK)):
            for entry in self._deferred:
                if entry.type is kind:
                    try:
                        make(entry)
                    except OSError as error:
                        raise _failure(error, entry.path) from error
        self.links = len(self._deferred)
        self._deferred = []

    def close(self) -> None:
        """Release the descriptors. May be called twice."""
        self._second.shutdown()
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
        self._batch.clear()
        self._close_left()
        while self._descriptors:
            os.close(self._descriptors.pop())

    def _close_left(self) -> None:
        while self._left:
            os.close(self._left.pop())

    def _write_shared(self, files: Iterator[_File]) -> None:
        """Write `files` in two threads, which take them in turn."""
        shared: list[Future[None]] = []
        with suppress(RuntimeError):  # no thread can be had
            shared.append(self._second.submit(self._write_files, files))
        try:
            self._write_files(files)
        finally:
            wait(shared)
        for second in shared:
            second.result()

    def _write_files(self, files: Iterator[_File]) -> None:
        for file in files:
            try:
                descriptor = self._create(file)
                try:
                    _write(descriptor, file.content)
                finally:
                    os.close(descriptor)
            except OSError as error:
                raise _failure(error, file.path) from error

    def _create(self, file: _File) -> int:
        descriptor = os.open(file.name, _FILE_FLAGS, file.mode, dir_fd=file.directory)
        if self._set_modes:
            try:
                os.fchmod(descriptor, file.mode)
            except OSError:
                os.close(descriptor)
                raise
        return descriptor

    def _open_root(self, destination: Path) -> bool:
        """Open the root; whether the mode of what is made there has to be set, because a umask or an ACL changes it."""
        with suppress(FileExistsError):
            destination.mkdir(_DIRECTORY_MODE)
        root = os.open(destination, _DIRECTORY_FLAGS)
        self._descriptors.append(root)
        with os.scandir(root) as entries:
            if any(entries):
                raise FileExistsError(errno.EEXIST, "The destination is not empty")
        os.fchmod(root, _DIRECTORY_MODE)
        os.mkdir(".probe", _DIRECTORY_MODE, dir_fd=root)
        mode = os.stat(".probe", dir_fd=root, follow_symlinks=False).st_mode
        os.rmdir(".probe", dir_fd=root)
        return mode & 0o777 != _DIRECTORY_MODE

    def _enter(self, path: str, member: str) -> None:
        """Make `path` the open directory, creating what is missing on the way, for the sake of `member`."""
        names = path.split("/") if path else []
        common = 0
        for ours, theirs in zip(self._names, names, strict=False):
            if ours != theirs:
                break
            common += 1
        while len(self._names) > common:
            self._names.pop()
            self._leave(self._descriptors.pop())
        self._parent = "/".join(self._names)
        try:
            for name in names[common:]:
                below = f"{self._parent}/{name}" if self._parent else name
                self._descriptors.append(self._open_directory(name, below))
                self._names.append(name)
                self._parent = below
        except OSError as error:
            raise _failure(error, member) from error

    def _leave(self, directory: int) -> None:
        """Close a directory, as soon as no file waits to be written there."""
        self._left.append(directory)
        if not self._batch:
            self._close_left()
        elif len(self._left) == _MAX_LEFT:
            self.flush()

    def _open_directory(self, name: str, path: str) -> int:
        parent = self._descriptors[-1]
        if path in self._known:
            return os.open(name, _DIRECTORY_FLAGS, dir_fd=parent)
        os.mkdir(name, _DIRECTORY_MODE, dir_fd=parent)
        descriptor = os.open(name, _DIRECTORY_FLAGS, dir_fd=parent)
        if self._set_modes:
            os.fchmod(descriptor, _DIRECTORY_MODE)
        self._known.add(path)
        self.directories += 1
        return descriptor

    def _make_symlink(self, entry: Entry) -> None:
        parent, _, name = entry.path.rpartition("/")
        self._enter(parent, entry.path)
        os.symlink(entry.link_target or "", name, dir_fd=self._descriptors[-1])

    def _make_hardlink(self, entry: Entry) -> None:
        source_parent, _, source = (entry.link_target or "").rpartition("/")
        parent, _, name = entry.path.rpartition("/")
        self._enter(source_parent, entry.path)
        held = os.dup(self._descriptors[-1])
        try:
            self._enter(parent, entry.path)
            os.link(source, name, src_dir_fd=held, dst_dir_fd=self._descriptors[-1], follow_symlinks=False)
        finally:
            os.close(held)


def _write(descriptor: int, content: memoryview | bytes) -> None:
    written = os.write(descriptor, content) if content else 0
    while written < len(content):
        written += os.write(descriptor, content[written:])


def _failure(error: OSError, path: str | None = None) -> ExtractionError:
    member = quoted(path) if path is not None else None
    what = f"Member {member}" if member else "The bundle's directory"
    if error.errno in _FULL:
        message = f"{what} could not be written: no space is left for it. Free space or raise the quota."
    elif error.errno == errno.EEXIST:
        message = (
            f"{what} could not be created: something is there already. A fresh directory was expected, on a file "
            "system that tells upper from lower case."
        )
    else:
        message = f"{what} could not be written: {error.strerror}. Check the scratch directory."
    return ExtractionError(message, error.errno, member)
