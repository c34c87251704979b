"""What the registry learns about a bundle while its upload streams by: nothing is written, memory stays flat.

The content digest
------------------
Two archives with the same content have the same content digest, whatever packed and compressed them. It is the SHA-256
of the concatenation of one record for each file, each link, and each directory with nothing below it, sorted by path
(compared as bytes of UTF-8). A record is five fields, each but the last followed by a NUL byte, ended by a newline:

    type NUL mode NUL size NUL value NUL path NEWLINE

    type   `file`, `symlink` or `directory`. A hard link counts as a file: which of two linked names is the link depends
           on the order in which they were packed.
    mode   `755` for a file that its owner may execute, `644` for one that he may not, empty otherwise.
    size   of a file in bytes, decimal; of a symbolic link the length of its target; `0` for a directory.
    value  of a file the SHA-256 of its bytes in lower-case hex; of a symbolic link its target as written; else empty.
    path   relative to the root, no leading `./`, no trailing `/`.

No field has a NUL, so a record's path and the type of the next record stand between two NULs; a type has no newline, so
the last newline there ends the path. Names with newlines in them can't imitate other records.
Order in the archive, times, owners, other mode bits and entries for directories that are not empty do not matter.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NoReturn

from libs.common.archive import ArchiveLimits, ArchiveReader, Entry, EntryType
from libs.common.native import NativeSniffer, Platform

MANIFEST_PATH = "manifest.json"


class ManifestError(Exception):
    """The bundle's `manifest.json` is missing or can't be read. `str()` says what was expected and what to do.

    `member` is always `manifest.json`, `code` always `manifest`: the same attributes as ArchiveError's. `limit` is
    `max_manifest_bytes` where it is too large.
    """

    code = "manifest"
    member = MANIFEST_PATH

    def __init__(self, message: str, *, limit: str | None = None) -> None:
        super().__init__(message)
        self.limit = limit


@dataclass(frozen=True, slots=True)
class FileRecord:
    """One member of a bundle. `digest` is the raw SHA-256 of a file's bytes; a hard link has the size and digest of its
    target; `mode` is 0o755 or 0o644 for files and hard links, else 0.
    """

    path: str
    type: EntryType
    size: int
    mode: int
    digest: bytes | None
    link_target: str | None


@dataclass(frozen=True, slots=True)
class Inspection:
    """What an upload is.

    `digest` and `content_digest` are `sha256:<hex>`, of the compressed bytes and of the content (see the module's
    docstring). `size` is the compressed length, `unpacked_size` the sum of the sizes of its files, in bytes;
    `file_count` counts files and links. `files` is in the archive's order, each path once; directories that only occur
    in paths are not in it. `native` pairs paths with platforms, a universal binary several times; `platforms` is
    sorted, and empty when no member is native: then the bundle runs anywhere.
    """

    digest: str
    content_digest: str
    size: int
    unpacked_size: int
    file_count: int
    compression: str
    manifest: dict[str, Any]
    files: list[FileRecord]
    native: list[tuple[str, str]]
    platforms: list[str]


class BundleInspector:
    """An EntrySink that keeps what there is to know of each member, and the manifest's bytes."""

    def __init__(self, max_manifest_bytes: int) -> None:
        self.files: list[FileRecord] = []
        self._max_manifest_bytes = max_manifest_bytes
        self.native: list[tuple[str, Platform]] = []
        self._directories: set[str] = set()
        self._regular: dict[str, FileRecord] = {}
        self._native: dict[str, list[Platform]] = {}
        self._manifest: bytearray | None = None
        self._entry: Entry | None = None
        self._hash = hashlib.sha256()
        self._sniffer = NativeSniffer()
        self._is_manifest = False

    def begin(self, entry: Entry) -> None:
        """Start a member. ManifestError if the manifest is too large or not a regular file."""
        self._is_manifest = entry.path == MANIFEST_PATH
        if self._is_manifest:
            _check_manifest_entry(entry, self._max_manifest_bytes)
            self._manifest = bytearray()
        if entry.type is EntryType.FILE:
            self._entry = entry
            self._hash = hashlib.sha256()
            self._sniffer = NativeSniffer()
        elif entry.type is EntryType.HARDLINK:
            self._link(entry)
        elif entry.type is EntryType.SYMLINK or entry.path not in self._directories:
            if entry.type is EntryType.DIRECTORY:
                self._directories.add(entry.path)
            self.files.append(FileRecord(entry.path, entry.type, 0, 0, None, entry.link_target))

    def data(self, chunk: memoryview) -> None:
        """Take a piece of the file that was begun."""
        self._hash.update(chunk)
        self._sniffer.feed(chunk)
        if self._is_manifest and self._manifest is not None:
            self._manifest += chunk

    def end(self) -> None:
        """The file that was begun is complete."""
        entry, self._entry = self._entry, None
        if entry is None:
            return
        mode = 0o755 if entry.executable else 0o644
        record = FileRecord(entry.path, entry.type, entry.size, mode, self._hash.digest(), None)
        self.files.append(record)
        self._regular[entry.path] = record
        platforms = self._sniffer.finish()
        if platforms:
            self._native[entry.path] = sorted(platforms)
            self.native += [(entry.path, platform) for platform in self._native[entry.path]]

    def manifest(self) -> dict[str, Any]:
        """The parsed manifest. ManifestError if there is none or it is not a JSON object."""
        if self._manifest is None:
            raise ManifestError(
                f"The bundle has no {MANIFEST_PATH} at its root. Pack the directory that contains it, not its parent "
                "(`tar -C DIR -czf bundle.tgz .`)."
            )
        return parse_manifest(bytes(self._manifest))

    def content_digest(self) -> str:
        """`sha256:<hex>` of the content, as the module's docstring defines it."""
        return content_digest(self.files)

    def _link(self, entry: Entry) -> None:
        target = self._regular[entry.link_target or ""]  # the reader lets no others pass
        self.files.append(
            FileRecord(entry.path, entry.type, target.size, target.mode, target.digest, entry.link_target)
        )
        self.native += [(entry.path, platform) for platform in self._native.get(target.path, ())]


class UploadInspection:
    """Inspects an upload: feed it the chunks of the archive as they arrive, then `finish`.

    Blocks while it decompresses and hashes: an event loop calls it in a thread. Raises ArchiveError or ManifestError as
    soon as something is wrong.
    """

    def __init__(self, limits: ArchiveLimits | None = None) -> None:
        limits = limits or ArchiveLimits()
        self._inspector = BundleInspector(limits.max_manifest_bytes)
        self._reader = ArchiveReader(self._inspector, limits)
        self._hash = hashlib.sha256()

    def feed(self, chunk: bytes | bytearray | memoryview) -> None:
        """Take the next bytes of the upload, in chunks of any size."""
        self._hash.update(chunk)
        self._reader.feed(chunk)

    def finish(self) -> Inspection:
        """The upload is complete: what it is."""
        totals = self._reader.finish()
        inspector = self._inspector
        return Inspection(
            digest=f"sha256:{self._hash.hexdigest()}",
            content_digest=inspector.content_digest(),
            size=totals.compressed_bytes,
            unpacked_size=totals.unpacked_bytes,
            file_count=sum(record.type is not EntryType.DIRECTORY for record in inspector.files),
            compression=totals.compression,
            manifest=inspector.manifest(),
            files=inspector.files,
            native=[(path, str(platform)) for path, platform in inspector.native],
            platforms=sorted({str(platform) for _, platform in inspector.native}),
        )


def parse_manifest(content: bytes) -> dict[str, Any]:
    """A manifest's bytes as an object. ManifestError unless they are one JSON object (RFC 8259) in UTF-8."""
    try:
        manifest = json.loads(
            content.decode(), parse_constant=_refuse_constant, parse_float=_finite, object_pairs_hook=_unique_keys
        )
        _check_texts(manifest)
    except UnicodeDecodeError as error:
        raise ManifestError(f"{MANIFEST_PATH} is not UTF-8 (byte {error.start}). Save it as UTF-8.") from error
    except RecursionError as error:
        raise ManifestError(f"{MANIFEST_PATH} is nested too deeply. Flatten it.") from error
    except ValueError as error:
        raise ManifestError(
            f"{MANIFEST_PATH} is not acceptable JSON: {error}. Mend it and pack the bundle again."
        ) from error
    if not isinstance(manifest, dict):
        raise ManifestError(f"{MANIFEST_PATH} is not a JSON object; expected one with name, version, runtime, entry.")
    return manifest


def content_digest(files: list[FileRecord]) -> str:
    """`sha256:<hex>` of a bundle's content, as the module's docstring defines it, from its members in any order."""
    digest = hashlib.sha256()
    for record in sorted(content_members(files), key=lambda record: record.path.encode()):
        digest.update(_record(record))
    return f"sha256:{digest.hexdigest()}"


def content_members(files: list[FileRecord]) -> Iterator[FileRecord]:
    """The members that make up the content: all but directories that have something in them."""
    parents: set[str] = set()
    for record in files:
        parent = record.path.rpartition("/")[0]
        while parent not in parents:
            parents.add(parent)
            parent = parent.rpartition("/")[0]
    return (record for record in files if record.type is not EntryType.DIRECTORY or record.path not in parents)


def _record(record: FileRecord) -> bytes:
    path = record.path.encode()
    if record.type is EntryType.DIRECTORY:
        return b"directory\0\x000\0\0%b\n" % path
    if record.type is EntryType.SYMLINK:
        target = (record.link_target or "").encode()
        return b"symlink\0\0%d\0%b\0%b\n" % (len(target), target, path)
    return b"file\0%o\0%d\0%b\0%b\n" % (record.mode, record.size, (record.digest or b"").hex().encode(), path)


def _check_manifest_entry(entry: Entry, max_bytes: int) -> None:
    if entry.type is not EntryType.FILE:
        raise ManifestError(f"{MANIFEST_PATH} is a {entry.type}; a regular file was expected. Pack the file itself.")
    if entry.size > max_bytes:
        raise ManifestError(
            f"{MANIFEST_PATH} has {entry.size} bytes; at most {max_bytes} are accepted. "
            "Move what is large into a file of its own.",
            limit="max_manifest_bytes",
        )


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"the number {text[:40]} is too large")
    return number


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"the key {key[:100]!r} is there twice")
        found[key] = value
    return found


def _check_texts(manifest: Any) -> None:
    """ValueError for texts that JSON can write with escapes, but that neither UTF-8 nor PostgreSQL can hold."""
    waiting = [manifest]
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict):
            waiting += value.keys()
            waiting += value.values()
        elif isinstance(value, list):
            waiting += value
        elif isinstance(value, str) and ("\0" in value or any("\ud800" <= char <= "\udfff" for char in value)):
            raise ValueError(f"the text {value[:100]!r} has a NUL or half a surrogate pair in it")
