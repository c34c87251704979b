"""A tarball on its way in: streamed to the bucket in parts, and inspected while it streams.

Where its publisher has said its digest, the parts go to the key that an artifact with this digest has, which nobody
sees before they are completed; otherwise to `uploads/<id>`, to be copied from there. One part is uploaded in one thread
and inspected in another while the next is being received, so memory holds two parts whatever the size. Nothing is left
when the context ends: the parts are aborted, or the completed object below `uploads/` is deleted.
"""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress

from libs.common.archive import ArchiveError, ArchiveErrorCode, ArchiveLimits
from libs.common.archive.compression import MAGIC_BYTES, source_for
from libs.common.completion import to_the_end
from libs.common.errors import StowageError, TooLarge, Unprocessable
from libs.common.identifiers import new_id
from libs.common.log import get_logger
from libs.common.objects import PART_BYTES, ObjectStore, Upload, artifact_key
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


class _Reception:
    """The state of one upload while its parts come in."""

    def __init__(self, objects: ObjectStore, limits: ArchiveLimits, declared: str | None) -> None:
        self._objects = objects
        self._declared = declared
        self._key = f"{UPLOADS}{new_id('upl')}"
        self._inspection = UploadInspection(limits)
        self._upload: Upload | None = None
        self._working: asyncio.Task[None] | None = None

    async def receive(self, chunks: AsyncIterator[bytes]) -> Incoming:
        part = bytearray()
        async for chunk in chunks:
            part += chunk
            while len(part) >= PART_BYTES:
                await self._hand_over(bytes(part[:PART_BYTES]))
                del part[:PART_BYTES]
        if part:
            await self._hand_over(bytes(part))
        del part
        await self._previous_part()
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
            raise RuntimeError("an upload without parts passed inspection")
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

    async def _hand_over(self, part: bytes) -> None:
        await self._previous_part()
        self._working = asyncio.create_task(self._work(part))

    async def _previous_part(self) -> None:
        if self._working is not None:
            await asyncio.shield(self._working)

    async def _work(self, part: bytes) -> None:
        inspected, sent = await asyncio.gather(
            asyncio.to_thread(self._inspection.feed, part),
            asyncio.to_thread(self._send, part),
            return_exceptions=True,
        )
        for result in (inspected, sent):  # what is wrong with the tarball says more than what is wrong with the bucket
            if isinstance(result, BaseException):
                with _as_refusals():
                    raise result

    def _send(self, part: bytes) -> None:
        if self._upload is None:
            self._upload = self._objects.upload(self._key_for(part), content_type="application/octet-stream")
        self._upload.part(part)

    def _key_for(self, part: bytes) -> str:
        if self._declared is not None:
            with suppress(ArchiveError):  # the inspection refuses it
                return artifact_key(self._declared, source_for(part[:MAGIC_BYTES]).compression)
        return self._key

    def _remove(self) -> None:
        if self._upload is not None:
            self._upload.abort()  # no error where it was completed
            if self._upload.key == self._key:
                self._objects.delete(self._key)


@asynccontextmanager
async def received(
    objects: ObjectStore, chunks: AsyncIterator[bytes], limits: ArchiveLimits, *, declared: str | None = None
) -> AsyncIterator[Incoming]:
    """The tarball that `chunks` are, once it is whole; `declared` is the digest that it should have.

    Raises Unprocessable or TooLarge as soon as something is wrong with it, and what `chunks` raise.
    """
    reception = _Reception(objects, limits, declared)
    try:
        yield await reception.receive(chunks)
    finally:
        await to_the_end(reception.discard())


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
