"""Unpacking a bundle below a fresh directory while it streams in, and removing what a run leaves.

Nothing here follows a symbolic link or resolves a path of more than one component: every file is created with
`O_NOFOLLOW | O_CREAT | O_EXCL` relative to the open descriptor of its directory, and links are made last. All of it
blocks; it belongs in a worker thread.
"""

from __future__ import annotations

import errno
import hashlib
import os
import threading
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from libs.common.archive import ArchiveError, ArchiveLimits, ArchiveReader, Entry, EntryType, quoted
from libs.common.removal import remove_tree

__all__ = [
    "ExtractionCancelledError",
    "ExtractionError",
    "ExtractionTotals",
    "IntegrityError",
    "TreeExtractor",
    "extract_stream",
    "remove_tree",
]

_DIRECTORY_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE_FLAGS = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE_MODE, _EXECUTABLE_MODE, _DIRECTORY_MODE = 0o644, 0o755, 0o755
_FULL = {errno.ENOSPC, errno.EDQUOT}


class ExtractionError(Exception):
    """The tree could not be written. `errno` is the system's number for it, or None; `member` the path if known."""

    def __init__(self, message: str, code: int | None = None, member: str | None = None) -> None:
        super().__init__(message)
        self.errno = code
        self.member = member


class IntegrityError(Exception):
    """The bytes that came are not those that were asked for. `expected` and `found` are digests or lengths."""

    def __init__(self, expected: str, found: str) -> None:
        super().__init__(
            f"The bundle's bytes are not what was published: expected {expected}, found {found}. "
            "Fetch it again; if that does not help, publish the bundle again, which repairs the stored object."
        )
        self.expected = expected
        self.found = found


class ExtractionCancelledError(Exception):
    """The caller asked to stop. What was written so far is still there."""


@dataclass(frozen=True, slots=True)
class ExtractionTotals:
    """What was unpacked: `compressed_bytes` read, `unpacked_bytes` of files, members by kind, the verified digest."""

    digest: str
    compressed_bytes: int
    unpacked_bytes: int
    files: int
    links: int
    directories: int


class TreeExtractor:
    """An EntrySink that writes what it is told below `destination`.

    `destination` is created (its parent must exist), or must be an empty directory. Modes become 755 or 644. `finish`
    makes the links; without it there are none. Closing releases the descriptors, at most one for each level of the
    tree, and removes nothing. Raises ExtractionError.
    """

    def __init__(self, destination: Path) -> None:
        self.files = 0
        self.directories = 0
        self.links = 0
        self._member: str | None = None
        self._file = -1
        self._known: set[str] = {""}
        self._deferred: list[Entry] = []
        self._names: list[str] = []  # the directory that is open, component by component
        self._descriptors: list[int] = []  # the root's, then one for each of `_names`
        self._parent = ""
        try:
            self._set_modes = self._open_root(destination)
        except OSError as error:
            self.close()
            raise self._failure(error) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def begin(self, entry: Entry) -> None:
        """Start a member. Files are created now, links remembered."""
        path = self._member = entry.path
        if entry.type is EntryType.FILE:
            parent, _, name = path.rpartition("/")
            try:
                if parent != self._parent:
                    self._enter(parent)
                mode = _EXECUTABLE_MODE if entry.executable else _FILE_MODE
                self._file = os.open(name, _FILE_FLAGS, mode, dir_fd=self._descriptors[-1])
                if self._set_modes:
                    os.fchmod(self._file, mode)
            except OSError as error:
                raise self._failure(error) from error
            self.files += 1
        elif entry.type is EntryType.DIRECTORY:
            try:
                self._enter(path)
            except OSError as error:
                raise self._failure(error) from error
        else:
            self._deferred.append(entry)

    def data(self, chunk: memoryview) -> None:
        """Write a piece of the file that was begun."""
        try:
            written = os.write(self._file, chunk)
            while written < len(chunk):
                written += os.write(self._file, chunk[written:])
        except OSError as error:
            raise self._failure(error) from error

    def end(self) -> None:
        """Close the file that was begun."""
        descriptor, self._file = self._file, -1
        try:
            os.close(descriptor)
        except OSError as error:
            raise self._failure(error) from error

    def finish(self) -> None:
        """Make the links: hard links first, so that nothing is written once a symbolic link exists."""
        try:
            for entry in self._deferred:
                if entry.type is EntryType.HARDLINK:
                    self._make_hardlink(entry)
            for entry in self._deferred:
                if entry.type is EntryType.SYMLINK:
                    self._make_symlink(entry)
        except OSError as error:
            raise self._failure(error) from error
        self.links = len(self._deferred)
        self._deferred = []

    def close(self) -> None:
        """Release the descriptors. May be called twice."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1
        while self._descriptors:
            os.close(self._descriptors.pop())

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

    def _enter(self, path: str) -> None:
        """Make `path` the open directory, creating what is missing on the way."""
        names = path.split("/") if path else []
        common = 0
        for ours, theirs in zip(self._names, names, strict=False):
            if ours != theirs:
                break
            common += 1
        while len(self._names) > common:
            self._names.pop()
            os.close(self._descriptors.pop())
        self._parent = "/".join(self._names)
        for name in names[common:]:
            below = f"{self._parent}/{name}" if self._parent else name
            self._descriptors.append(self._open_directory(name, below))
            self._names.append(name)
            self._parent = below

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
        self._member = entry.path
        parent, _, name = entry.path.rpartition("/")
        self._enter(parent)
        os.symlink(entry.link_target or "", name, dir_fd=self._descriptors[-1])

    def _make_hardlink(self, entry: Entry) -> None:
        self._member = entry.path
        source_parent, _, source = (entry.link_target or "").rpartition("/")
        parent, _, name = entry.path.rpartition("/")
        self._enter(source_parent)
        held = os.dup(self._descriptors[-1])
        try:
            self._enter(parent)
            os.link(source, name, src_dir_fd=held, dst_dir_fd=self._descriptors[-1], follow_symlinks=False)
        finally:
            os.close(held)

    def _failure(self, error: OSError) -> ExtractionError:
        member = quoted(self._member) if self._member is not None else None
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


def extract_stream(
    chunks: Iterable[bytes],
    destination: Path,
    *,
    expected_digest: str,
    expected_size: int | None = None,
    limits: ArchiveLimits | None = None,
    cancelled: Callable[[], bool] | threading.Event | None = None,
) -> ExtractionTotals:
    """Hash, decompress and unpack `chunks` below `destination` in one pass.

    `expected_digest` is `sha256:<hex>` of the compressed bytes, `expected_size` their number. Both are compared after
    the last chunk; only then are links made. `cancelled` is asked once a chunk. Raises IntegrityError, ArchiveError,
    ExtractionError or ExtractionCancelledError, and what `chunks` raises; then the caller removes `destination`
    (`remove_tree`). A damaged object is an IntegrityError also where it is no longer an archive.
    """
    stop = cancelled.is_set if isinstance(cancelled, threading.Event) else cancelled
    digest = hashlib.sha256()
    size = 0
    refused: ArchiveError | None = None
    limits = limits or ArchiveLimits()
    with TreeExtractor(destination) as tree:
        reader = ArchiveReader(tree, limits)
        for chunk in chunks:
            if stop is not None and stop():
                raise ExtractionCancelledError("The extraction was cancelled.")
            digest.update(chunk)
            size += len(chunk)
            if expected_size is not None and size > expected_size:
                raise IntegrityError(f"{expected_size} bytes", "more")
            if refused is None:
                refused = _attempt(reader, chunk)
            elif size > limits.max_compressed_bytes:
                raise refused
        found = f"sha256:{digest.hexdigest()}"
        if expected_size is not None and size != expected_size:
            raise IntegrityError(f"{expected_size} bytes", f"{size} bytes") from refused
        if found != expected_digest:
            raise IntegrityError(expected_digest, found) from refused
        if refused is not None:
            raise refused
        totals = reader.finish()
        tree.finish()
    return ExtractionTotals(
        found, totals.compressed_bytes, totals.unpacked_bytes, tree.files, tree.links, tree.directories
    )


def _attempt(reader: ArchiveReader, chunk: bytes) -> ArchiveError | None:
    """Feed the reader. Its error is kept until the digest says whether the archive or the transfer is to blame."""
    try:
        reader.feed(chunk)
    except ArchiveError as error:
        return error
    return None
