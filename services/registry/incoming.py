"""A tarball on its way in: streamed to the bucket, and inspected while it streams.

Where its publisher has said its digest, it goes to the key that an artifact with this digest has, where nobody sees it
before it is completed; otherwise to `uploads/<id>`, to be copied from there. It is sent in parts; or, where its length
is known as well, as one, which the bucket gets while it comes. One piece is uploaded in one thread and inspected in
another while the next is being received, so memory holds some MiB whatever the size. Nothing is left when the context
ends: what was sent is aborted, or the completed object below `uploads/` is deleted.
"""

import asyncio
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, nullcontext, suppress
from dataclasses import dataclass

from libs.common.archive import ArchiveError, ArchiveErrorCode, ArchiveLimits
from libs.common.archive.compression import MAGIC_BYTES, source_for
from libs.common.completion import to_the_end
from libs.common.errors import StowageError, TooLarge, Unprocessable
from libs.common.identifiers import new_id
from libs.common.log import get_logger
from libs.common.object_uploads import MAX_PART_BYTES, PART_BYTES, STREAM_BYTES, KnownBytes, Upload
from libs.common.objects import ObjectStore, artifact_key
from services.registry.inspection import Inspection, ManifestError, UploadInspection
from services.registry.settings import RegistrySettings

UPLOADS = "uploads/"

_TOO_LARGE = {ArchiveErrorCode.TOO_LARGE, ArchiveErrorCode.TOO_MANY_ENTRIES}

_log = get_logger("registry")


class Incoming:
    """A tarball that was received and inspected. `complete` makes it an object; that blocks, so call it in a thread."""

    def __init__(self, inspection: Inspection, upload: Upload) -> None:
        self.inspection = inspection
        self._upload = upload
        self._completed = False

    def complete(self) -> str:
        """The key of the object that now holds the tarball: the artifact's own, or one until the context ends."""
        if not self._completed:
            self._upload.complete()
            self._completed = True
        return self._upload.key


@dataclass(frozen=True, slots=True)
class Announced:
    """What a publisher says of a tarball before it comes: its digest, and its length in bytes."""

    digest: str | None = None
    size: int | None = None

    @property
    def known(self) -> KnownBytes | None:
        """What is enough to stream it as one part; None where that was not said, and where one part is not for it."""
        if self.digest is None or self.size is None or not PART_BYTES < self.size <= MAX_PART_BYTES:
            return None
        return KnownBytes(self.size, self.digest.removeprefix("sha256:"))


class _Reception:
    """The state of one upload while its pieces come in."""

    def __init__(
        self, objects: ObjectStore, limits: ArchiveLimits, declared: str | None, known: KnownBytes | None
    ) -> None:
        self._objects = objects
        self._declared = declared
        self._known = known
        self._key = f"{UPLOADS}{new_id('upl')}"
        self._inspection = UploadInspection(limits)
        self._upload: Upload | None = None
        self._working: asyncio.Task[None] | None = None

    async def receive(self, chunks: AsyncIterator[bytes]) -> Incoming:
        async for piece in _pieces(chunks, PART_BYTES if self._known is None else STREAM_BYTES):
            await self._hand_over(piece)
        await self._previous_piece()
        with _as_refusals():
            inspection = await asyncio.to_thread(self._inspection.finish)
        if self._declared not in (None, inspection.digest):
            raise Unprocessable(
                f"the tarball is {inspection.digest}, not {self._declared}, which the parameter digest says. Was it "
                "damaged on the way, or packed again since? Publish with its own digest, or without the parameter.",
                kind="digest-mismatch",
                declaredDigest=self._declared,
                digest=inspection.digest,
            )
        if self._upload is None:  # an empty body, which `finish` has refused
            raise RuntimeError("an upload without bytes passed inspection")
        return Incoming(inspection, self._upload)

    async def discard(self) -> None:
        """Remove whatever is in the bucket by now. What can't be removed is left to the sweep."""
        if self._working is not None:
            await asyncio.wait((self._working,))  # aborting under a part that is being written may leave it behind
            if not self._working.cancelled():
                self._working.exception()
        try:
            await asyncio.to_thread(self._remove)
        except StowageError as error:
            _log.warning("upload_left_behind", key=self._key, error=error.message)

    async def _hand_over(self, piece: Sequence[bytes]) -> None:
        await self._previous_piece()
        self._working = asyncio.create_task(self._work(piece))

    async def _previous_piece(self) -> None:
        if self._working is not None:
            await asyncio.shield(self._working)

    async def _work(self, piece: Sequence[bytes]) -> None:
        inspected, sent = await asyncio.gather(
            asyncio.to_thread(self._inspect, piece),
            asyncio.to_thread(self._send, piece),
            return_exceptions=True,
        )
        for result in (inspected, sent):  # what is wrong with the tarball says more than what is wrong with the bucket
            if isinstance(result, BaseException):
                with _as_refusals():
                    raise result

    def _inspect(self, piece: Sequence[bytes]) -> None:
        for chunk in piece:
            self._inspection.feed(chunk)

    def _send(self, piece: Sequence[bytes]) -> None:
        if self._upload is None:
            self._upload = self._begin(b"".join(piece))
        self._upload.write(*piece)

    def _begin(self, first: bytes) -> Upload:
        key, content_type = self._key_for(first), "application/octet-stream"
        if self._known is not None:
            return self._objects.stream(key, self._known, content_type=content_type)
        return self._objects.upload(key, content_type=content_type)

    def _key_for(self, first: bytes) -> str:
        if self._declared is not None:
            with suppress(ArchiveError):  # the inspection refuses it
                return artifact_key(self._declared, source_for(first[:MAGIC_BYTES]).compression)
        return self._key

    def _remove(self) -> None:
        if self._upload is not None:
            self._upload.abort()  # no error where it was completed
            if self._upload.key == self._key:
                self._objects.delete(self._key)


@asynccontextmanager
async def received(
    objects: ObjectStore,
    chunks: AsyncIterator[bytes],
    limits: ArchiveLimits,
    *,
    announced: Announced,
    streams: asyncio.Semaphore,
) -> AsyncIterator[Incoming]:
    """The tarball that `chunks` are, once it is whole. It must have the digest that is announced.

    As many are streamed at a time as `streams` has room for: each has a thread and a connection while it comes.
    Raises Unprocessable or TooLarge as soon as something is wrong with it, and what `chunks` raise.
    """
    known = None if streams.locked() else announced.known
    async with streams if known else nullcontext():
        reception = _Reception(objects, limits, announced.digest, known)
        try:
            yield await reception.receive(chunks)
        finally:
            await to_the_end(reception.discard())


async def _pieces(chunks: AsyncIterator[bytes], piece_bytes: int) -> AsyncIterator[Sequence[bytes]]:
    """The chunks in pieces of so many bytes, but for the last. Chunks are cut where a piece ends, and never copied."""
    piece: list[bytes] = []
    missing = piece_bytes
    async for chunk in chunks:
        start = 0
        while len(chunk) - start >= missing:
            yield [*piece, chunk[start : start + missing]]
            start += missing
            piece, missing = [], piece_bytes
        if start < len(chunk):
            piece.append(chunk[start:])
            missing -= len(chunk) - start
    if piece:
        yield piece


@contextmanager
def _as_refusals() -> Iterator[None]:
    """Raise what the inspection finds as errors that callers can act on."""
    try:
        yield
    except ArchiveError as error:
        kind = f"archive-{error.code.value.replace('_', '-')}"
        refusal = TooLarge if error.code in _TOO_LARGE else Unprocessable
        sentence, facts = _with_setting(str(error), error.limit)
        raise refusal(sentence, kind=kind, code=error.code.value, member=error.member, **facts) from error
    except ManifestError as error:
        sentence, facts = _with_setting(str(error), error.limit)
        raise Unprocessable(sentence, kind="invalid-manifest", member=error.member, **facts) from error


def _with_setting(sentence: str, limit: str | None) -> tuple[str, dict[str, str]]:
    """The sentence with the setting behind the limit that was exceeded, if one was, and that as a fact for programs."""
    if limit is None:
        return sentence, {}
    setting = RegistrySettings.variable_of_limit(limit)
    return f"{sentence} The limit is the setting {setting}.", {"setting": setting}
