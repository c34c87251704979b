"""Reading an artifact out of the bucket, for those who can't or won't follow a redirect to it."""

import asyncio
import hashlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from libs.common.completion import in_thread
from libs.common.errors import Unavailable
from libs.common.object_errors import ObjectMissing
from libs.common.objects import ObjectBody, ObjectStore
from services.registry.placement import is_whole
from services.registry.store.versions import Version


async def presign(objects: ObjectStore, version: Version, *, expires_seconds: int) -> str:
    """A URL that reads the artifact without a token for a while; Unavailable where its object is not there."""
    if not await asyncio.to_thread(is_whole, objects, version.object_key, version.size):
        raise _lost(version)
    return await asyncio.to_thread(
        objects.presigned_url, version.object_key, expires_seconds=expires_seconds, filename=filename_of(version)
    )


def filename_of(version: Version) -> str:
    """What a downloaded artifact is called."""
    return f"{version.slug}-{version.version}.{'tar.zst' if version.compression == 'zstd' else 'tgz'}"


@asynccontextmanager
async def opened(
    objects: ObjectStore, version: Version, *, start: int = 0, stop: int | None = None
) -> AsyncIterator[AsyncIterator[bytes]]:
    """The bytes of the artifact from `start` to before `stop`, in chunks of up to 1 MiB.

    Raises Unavailable where the object is not there, breaks off, or, if it is read whole, has not the digest that it
    should have: that before the last chunk, so that nobody takes what came for the artifact.
    """
    stop = version.size if stop is None else stop
    try:
        body = await in_thread(objects.read, version.object_key, start=start)
    except ObjectMissing:
        raise _lost(version) from None
    try:
        if body.size != version.size - start:
            raise _lost(version)
        whole = start == 0 and stop == version.size
        yield _verified(body, version) if whole else _up_to(body, stop - start)
    finally:
        await asyncio.to_thread(body.close)


async def _verified(body: ObjectBody, version: Version) -> AsyncIterator[bytes]:
    hashed = hashlib.sha256()
    held = b""
    async for chunk in _chunks(body):
        if held:
            yield held
        held = chunk
        await in_thread(hashed.update, chunk)
    if f"sha256:{hashed.hexdigest()}" != version.digest:
        raise _lost(version)
    yield held


async def _up_to(body: ObjectBody, length: int) -> AsyncIterator[bytes]:
    async for chunk in _chunks(body):
        yield chunk[:length]
        length -= len(chunk)
        if length <= 0:
            return


async def _chunks(body: ObjectBody) -> AsyncIterator[bytes]:
    iterator = iter(body)
    # A read can't be interrupted, and the body must not be closed under it.
    while chunk := await in_thread(next, iterator, b""):
        yield chunk


def _lost(version: Version) -> Unavailable:
    return Unavailable(
        f"the object of {version.slug}@{version.version}, {version.digest}, is missing or damaged in the bucket. "
        "Publish the same bytes again with force=true to repair it.",
        kind="artifact-damaged",
        digest=version.digest,
    )
