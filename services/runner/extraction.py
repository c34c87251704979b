"""Unpacking a bundle below a fresh directory while it streams in: received, decompressed and written in one pass.

Each of the three has a thread, a few pieces ahead of the next, since their work is done by the kernel and by
libraries that do not hold Python's lock. All of it blocks; it belongs in a worker thread.
"""

from __future__ import annotations

import hashlib
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from libs.common.archive import ArchiveError, ArchiveLimits, Decompression, Frame, TarParser
from libs.common.removal import remove_tree
from services.runner.tree import ExtractionError, TreeExtractor

__all__ = [
    "ExtractionCancelledError",
    "ExtractionError",
    "ExtractionTotals",
    "IntegrityError",
    "TreeExtractor",
    "extract_stream",
    "remove_tree",
]

_AHEAD = 4
"""Chunks and batches that wait between one thread and the next."""

_BATCH_BYTES = 1024 * 1024
"""Bytes of the tar stream that are handed over at a time, at least: waking a thread takes as long as some files do."""

_PIECE_COST = 1024
"""Bytes that a piece counts at least: many tiny ones take more than their content."""

_DECOMPRESSORS = 2
"""Frames of a bundle that are decompressed at the same time."""

_SMALL_BYTES = 64 * 1024
"""Size of a tarball up to which it is unpacked sooner by one thread than others are woken."""

Item = TypeVar("Item")


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
    (`remove_tree`). A damaged object is an IntegrityError also where it is no longer an archive. `chunks` is drawn in
    another thread, but no longer once this has returned.
    """
    limits = limits or ArchiveLimits()
    transfer = _Transfer(chunks, expected_size, cancelled)
    decompression = Decompression(limits)
    alone = expected_size is not None and expected_size <= _SMALL_BYTES
    with TreeExtractor(destination) as tree, closing(_ahead(transfer.receive(), alone=alone)) as received:
        refused = None
        parser = TarParser(tree, limits)
        with (
            ThreadPoolExecutor(_DECOMPRESSORS, thread_name_prefix="unpack") as pool,
            closing(
                _ahead(_decompressed(_batches(decompression, received), None if alone else pool), alone=alone)
            ) as batches,
        ):
            try:
                for batch in batches:
                    for piece in batch.result():
                        parser.feed(piece)
                    tree.flush()
                parser.finish()
            except ArchiveError as error:
                refused = error
        if refused is not None:
            # Whether the archive or its transfer is to blame is told by the digest, for which all bytes are needed.
            for _ in received:
                if transfer.size > limits.max_compressed_bytes:
                    raise refused
        transfer.verify(expected_digest, refused)
        if refused is not None:
            raise refused
        tree.finish()
    return ExtractionTotals(
        expected_digest, transfer.size, parser.unpacked_bytes, tree.files, tree.links, tree.directories
    )


class _Transfer:
    """Receives an object, and can tell whether it is the one that was expected."""

    def __init__(
        self, chunks: Iterable[bytes], expected_size: int | None, cancelled: Callable[[], bool] | threading.Event | None
    ) -> None:
        self.size = 0
        self._chunks = chunks
        self._expected_size = expected_size
        self._digest = hashlib.sha256()
        self._stop = cancelled.is_set if isinstance(cancelled, threading.Event) else cancelled

    def receive(self) -> Iterator[bytes]:
        """The chunks, as they come."""
        for chunk in self._chunks:
            if self._stop is not None and self._stop():
                raise ExtractionCancelledError("The extraction was cancelled.")
            self._digest.update(chunk)
            self.size += len(chunk)
            if self._expected_size is not None and self.size > self._expected_size:
                raise IntegrityError(f"{self._expected_size} bytes", "more")
            yield chunk

    def verify(self, expected_digest: str, cause: ArchiveError | None) -> None:
        """Raise IntegrityError, because of `cause`, unless length and digest of what came are as expected."""
        found = f"sha256:{self._digest.hexdigest()}"
        if self._expected_size is not None and self.size != self._expected_size:
            raise IntegrityError(f"{self._expected_size} bytes", f"{self.size} bytes") from cause
        if found != expected_digest:
            raise IntegrityError(expected_digest, found) from cause


def _batches(decompression: Decompression, chunks: Iterable[bytes]) -> Iterator[list[bytes | Frame]]:
    """The tar stream in pieces, by the MiB. ArchiveError for what is not a whole archive."""
    batch: list[bytes | Frame] = []
    held = 0
    for chunk in chunks:
        for piece in decompression.split(chunk):
            batch.append(piece)
            held += max(len(piece), len(piece.compressed) if isinstance(piece, Frame) else 0, _PIECE_COST)
            if held >= _BATCH_BYTES:
                yield batch
                batch, held = [], 0
    decompression.finish()
    yield batch


def _decompressed(
    batches: Iterator[list[bytes | Frame]], pool: ThreadPoolExecutor | None
) -> Iterator[Future[list[bytes]]]:
    """The pieces of each batch, as they will be when the pool has decompressed those that are frames.

    Without a pool they are decompressed as they are drawn.
    """
    for batch in batches:
        if pool is not None and any(isinstance(piece, Frame) for piece in batch):
            with suppress(RuntimeError):  # no thread can be had
                yield pool.submit(_decompress, batch)
                continue
        done: Future[list[bytes]] = Future()
        done.set_result(_decompress(batch))
        yield done


def _decompress(batch: list[bytes | Frame]) -> list[bytes]:
    return [piece.decompress() if isinstance(piece, Frame) else piece for piece in batch]


def _ahead(items: Iterator[Item], *, alone: bool) -> Generator[Item]:
    """The same items, none of which is None, drawn `_AHEAD` in advance by a thread that is gone when this is closed.

    Where it shall be done `alone`, or no thread can be had (a job may have used up what its pod is allowed), they are
    drawn one by one.
    """
    if alone:
        yield from items
        return
    with ThreadPoolExecutor(1, thread_name_prefix="unpack") as thread:
        try:
            first = thread.submit(next, items, None)
        except RuntimeError:
            yield from items
            return
        try:
            waiting: deque[Future[Item | None]] = deque([first])
            waiting.extend(thread.submit(next, items, None) for _ in range(_AHEAD - 1))
            while (item := waiting.popleft().result()) is not None:
                waiting.append(thread.submit(next, items, None))
                yield item
        finally:
            thread.shutdown(wait=False, cancel_futures=True)
