"""Packing a directory deterministically: the same tree gives the same bytes, as a stream with flat memory.

The archive is a tar (ustar with pax headers, POSIX.1-2008) compressed by zstd at level 6, each MiB of it in a frame of
its own (RFC 8878, 3.1): any program reads that as one stream, and the runner decompresses several frames at once. zstd
rather than gzip because a bundle is packed once and unpacked by each run. Frames have no checksums: the digest covers
all of them. The bytes are the same as long as the version of zstd is: across versions compare content digests, not
digests.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import zstandard

from libs.common.archive import FRAME_BYTES, ArchiveLimits, quoted, symlink_fault

CHUNK_BYTES = 1024 * 1024
LEVEL = 6
MODIFIED_SECONDS = 499162500
"""The time of each member, as in npm's packages: 26 October 1985, 08:15 UTC. Zero confuses some programs."""

_LIMITS = ArchiveLimits()  # as the registry has them by default
_BLOCK = 512
_RECORD = 20 * _BLOCK
_MAX_OCTAL_SIZE = 8**11 - 1
_NAME_BYTES = 100
_DIRECTORY_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
# O_NONBLOCK: a FIFO that took the place of a file must not make it wait.
_FILE_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_KINDS = {stat.S_IFSOCK: "a socket", stat.S_IFIFO: "a FIFO", stat.S_IFCHR: "a device", stat.S_IFBLK: "a device"}


class PackingError(Exception):
    """A tree that can't be packed: `member` is the path at fault, `str()` says why and what to do."""

    def __init__(self, member: str, message: str) -> None:
        shown = quoted(member)
        super().__init__(f"{shown} {message}")
        self.member = shown


@dataclass(frozen=True, slots=True)
class _Member:
    path: str
    status: os.stat_result
    target: str | None  # of a symbolic link


def pack(directory: Path) -> Iterator[bytes]:
    """The archive of what is below `directory`, in chunks of a frame each: at most 1 MiB and a few bytes.

    Members are sorted by path as bytes of UTF-8, the root itself is left out. Modes become 755 or 644 by the owner's
    right to execute, owners 0 without names, times `MODIFIED_SECONDS`. Symbolic links are kept as they are, hard links
    become files. The tree is read while the chunks are taken: it must not change meanwhile. PackingError for links that
    leave the directory, for sockets, FIFOs and devices, for names that are not UTF-8, and for files that change size or
    are replaced. OSError for what can't be read.
    """
    compressor = zstandard.ZstdCompressor(level=LEVEL)
    waiting = bytearray()
    for piece in _whole_records(_tar(directory)):
        waiting += piece
        while len(waiting) >= FRAME_BYTES:
            yield compressor.compress(waiting[:FRAME_BYTES])
            del waiting[:FRAME_BYTES]
    if waiting:
        yield compressor.compress(waiting)


def _whole_records(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """The tar stream with its end: two blocks of zeros, and zeros up to a whole record, as tar programs expect."""
    length = 0
    for piece in pieces:
        length += len(piece)
        yield piece
    yield bytes(2 * _BLOCK + -(length + 2 * _BLOCK) % _RECORD)


def _tar(directory: Path) -> Iterator[bytes]:
    root = os.open(directory, _DIRECTORY_FLAGS)
    try:
        members = sorted(_walk(root, ""), key=lambda member: member.path.encode())
    finally:
        os.close(root)
    for member in members:
        if stat.S_ISDIR(member.status.st_mode):
            yield _header(member.path + "/", b"5", 0o755, 0, "")
        elif member.target is not None:
            yield _header(member.path, b"2", 0o777, 0, member.target)
        else:
            mode = 0o755 if member.status.st_mode & stat.S_IXUSR else 0o644
            yield _header(member.path, b"0", mode, member.status.st_size, "")
            yield from _content(directory, member)


def _walk(directory: int, prefix: str) -> Iterator[_Member]:
    """All below an open directory, without following links, in no order. One descriptor for each level."""
    if prefix.count("/") >= _LIMITS.max_path_depth:
        raise PackingError(prefix, f"is more than {_LIMITS.max_path_depth} levels deep. Flatten the tree.")
    with os.scandir(directory) as entries:
        names = [entry.name for entry in entries]
    for name in names:
        member = _examine(directory, name, prefix + _checked_name(name, prefix))
        yield member
        if stat.S_ISDIR(member.status.st_mode):
            below = os.open(name, _DIRECTORY_FLAGS, dir_fd=directory)
            try:
                yield from _walk(below, member.path + "/")
            finally:
                os.close(below)


def _checked_name(name: str, prefix: str) -> str:
    try:
        name.encode()
    except UnicodeEncodeError:
        shown = os.fsencode(name).decode("utf-8", "backslashreplace")
        raise PackingError(prefix + shown, "has a name that is not UTF-8. Rename it.") from None
    return name


def _examine(directory: int, name: str, path: str) -> _Member:
    status = os.stat(name, dir_fd=directory, follow_symlinks=False)
    kind = stat.S_IFMT(status.st_mode)
    if kind in _KINDS:
        raise PackingError(path, f"is {_KINDS[kind]}; only files, directories and links can be packed. Remove it.")
    if kind != stat.S_IFLNK:
        return _Member(path, status, None)
    target = os.readlink(name, dir_fd=directory)
    fault = symlink_fault(path, target, _LIMITS)
    if fault:
        raise PackingError(
            path,
            f"is a symbolic link that {fault} ({quoted(target)!r}); a relative target inside the bundle was expected. "
            "Replace it by what it points to, or remove it.",
        )
    return _Member(path, status, target)


def _content(directory: Path, member: _Member) -> Iterator[bytes]:
    """The bytes of a file, padded to whole blocks. It must be the file that was listed, and of the size it had then."""
    try:
        descriptor = os.open(directory / member.path, _FILE_FLAGS)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ELOOP, errno.ENOTDIR):
            raise _changed(member) from error
        raise
    try:
        status = os.fstat(descriptor)
        if (status.st_dev, status.st_ino) != (member.status.st_dev, member.status.st_ino):
            raise _changed(member)
        missing = member.status.st_size
        while missing:
            piece = os.read(descriptor, min(missing, CHUNK_BYTES))
            if not piece:
                raise _changed(member)
            missing -= len(piece)
            yield piece
        if os.read(descriptor, 1):
            raise _changed(member)
    finally:
        os.close(descriptor)
    if padding := -member.status.st_size % _BLOCK:
        yield bytes(padding)


def _changed(member: _Member) -> PackingError:
    return PackingError(
        member.path, "changed while it was packed. End what still writes to the directory, and build again."
    )


def _header(path: str, kind: bytes, mode: int, size: int, target: str) -> bytes:
    """The header of a member, preceded by a pax header for what does not fit or is not ASCII."""
    records = b""
    for key, value in (("linkpath", target), ("path", path)):
        if len(value) > _NAME_BYTES or not value.isascii():
            records += _pax_record(key, value)
    if size > _MAX_OCTAL_SIZE:
        records += _pax_record("size", str(size))
    name = path.encode("ascii", "replace")[:_NAME_BYTES]
    link = target.encode("ascii", "replace")[:_NAME_BYTES]
    block = _block(name, kind, mode, size if size <= _MAX_OCTAL_SIZE else 0, link)
    if not records:
        return block
    extended = _block(b"PaxHeader", b"x", 0o644, len(records), b"")
    return extended + records + bytes(-len(records) % _BLOCK) + block


def _block(name: bytes, kind: bytes, mode: int, size: int, link: bytes) -> bytes:
    """A ustar header (POSIX.1-2008, pax, "ustar Header Block")."""
    block = bytearray(_BLOCK)
    block[: len(name)] = name
    block[100:136] = b"%07o\0%07o\0%07o\0%011o\0" % (mode, 0, 0, size)
    block[136:156] = b"%011o\0" % MODIFIED_SECONDS + b" " * 8
    block[156:157] = kind
    block[157 : 157 + len(link)] = link
    block[257:265] = b"ustar\x0000"
    block[329:345] = b"%07o\0%07o\0" % (0, 0)
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def _pax_record(key: str, value: str) -> bytes:
    """`length key=value\\n`, the length counting its own digits."""
    body = f" {key}={value}\n".encode()
    length = len(body)
    while len(str(length)) + len(body) != length:
        length = len(str(length)) + len(body)
    return str(length).encode() + body
