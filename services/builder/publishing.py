"""From a directory into the registry: packed while it is sent, never as a file."""

import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Self
from urllib.parse import quote

from libs.common.client import RegistryClient
from libs.common.completion import in_thread
from libs.common.errors import Unprocessable
from libs.common.models import Page, Revision, Version
from services.builder.packing import PackingError, pack


@dataclass(frozen=True, slots=True)
class Publication:
    """What came of publishing: the version as it is now, whether that is what it was, and what it replaced."""

    version: Version
    unchanged: bool
    previous_digest: str | None


async def publish(
    registry: RegistryClient, slug: str, version: str, directory: Path, *, reason: str, build_id: str
) -> Publication:
    """Pack a directory straight into a forced publication.

    Raises Unprocessable for what can't be packed, ServiceError for what the registry refuses, Unavailable.
    """
    async with _packed(directory) as body:
        status, after = await registry.publish(slug, version, body, force=True, reason=reason, build_id=build_id)
    if status != 201 and not await _is_ours(registry, slug, version, after.revision, build_id):
        return Publication(after, unchanged=True, previous_digest=None)
    return Publication(after, unchanged=False, previous_digest=after.previous_digest)


async def _is_ours(registry: RegistryClient, slug: str, version: str, revision: int, build_id: str) -> bool:
    """Whether a revision was made by this build.

    Somebody else may have published the same content before; and so may this build, on a builder that was lost.
    """
    cursor = ""
    while True:
        options = {"cursor": cursor} if cursor else {}
        page = await registry.get(f"{_version_path(slug, version)}/revisions", Page[Revision], **options)
        for item in page.items:
            if item.revision == revision:
                return item.build_id == build_id
        if page.next is None:
            return False
        cursor = page.next


def _version_path(slug: str, version: str) -> str:
    return f"/job-bundles/{quote(slug, safe='')}/versions/{quote(version, safe='')}"


class _PackedBody:
    """The archive of a directory as a request body. Chunks are made in a thread, one at a time."""

    def __init__(self, directory: Path) -> None:
        self._chunks: Iterator[bytes] = pack(directory)
        self._turn = threading.Lock()
        self.error: PackingError | OSError | None = None

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        chunk = await in_thread(self._take)
        if chunk is None:
            raise StopAsyncIteration
        return chunk

    def close(self) -> None:
        """Return when nobody reads the directory any more; nobody will."""
        with self._turn:
            self._chunks = iter(())

    def _take(self) -> bytes | None:
        with self._turn:
            try:
                return next((chunk for chunk in self._chunks if chunk), None)
            except (PackingError, OSError) as error:
                self.error = error
                raise


@asynccontextmanager
async def _packed(directory: Path) -> AsyncIterator[_PackedBody]:
    """A body that fails inside the context as what it is, not as the broken connection that it causes."""
    body = _PackedBody(directory)
    try:
        yield body
    except Exception as error:
        if body.error is not None:
            raise Unprocessable(f"the bundle can't be packed: {body.error}", kind="packing-failed") from error
        raise
    finally:
        await in_thread(body.close)
