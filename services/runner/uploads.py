"""Outputs on their way to the bucket: below keys of the attempt's own, so that no two attempts write the same object.

They become the run's in the transaction that ends it. Until then, and when that never comes, `runner.uploads` says who
has begun to upload, so that what nobody records is removed whatever happens to the runner.
"""

import asyncio
import contextlib
import hashlib
import threading
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Executor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from libs.common.database import Pool
from libs.common.log import get_logger
from libs.common.models import Output
from libs.common.object_errors import ObjectStoreUnavailable
from libs.common.object_uploads import PART_BYTES
from libs.common.objects import ObjectStore, output_key
from services.runner import output_store
from services.runner.endings import AttemptInterrupted, RunFailed
from services.runner.holder import Order, PartsUpload, RunObjects
from services.runner.outputs import FoundOutput, content_type_of, open_output
from services.runner.persistence import persistently
from services.runner.store import Assignment

Value = TypeVar("Value")

_PARALLEL_UPLOADS = 4
_PATIENCE_SECONDS = 60.0  # the handler has done its work: that is not thrown away since S3 starts anew
_PAUSE_SECONDS = 1.0
_SETTLED_SECONDS = 60.0  # a runner that was paused may wake up meanwhile and go on with what it was uploading
_log = get_logger("runner")


@dataclass(frozen=True, slots=True)
class Uploads:
    """Who uploads outputs, and what becomes of those that nobody records."""

    pool: Pool
    objects: ObjectStore
    threads: Executor

    @contextlib.asynccontextmanager
    async def writing(self, run: Assignment, *, in_parts: bool) -> AsyncIterator[None]:
        """An attempt may write its outputs while the context is open, `in_parts` where any of them is that large.

        AttemptInterrupted where its lease is lost. When the context ends by an error, they are removed.
        """
        if not await persistently(lambda: self._begin(run), what="begin_upload", run_id=run.id):
            raise AttemptInterrupted
        try:
            yield
        except Exception:
            await self.discard(run)
            raise
        if in_parts:
            await self._end_broken(run)

    async def discard(self, run: Assignment) -> None:
        """Remove what this attempt has uploaded, and nobody will record. What can't be removed now is swept later."""
        try:
            await self._in_thread(_remove, self.objects, run.id, run.attempts)
        except ObjectStoreUnavailable as error:
            _log.warning("uploads_not_removed", run=run.id, attempt=run.attempts, error=error.message)

    async def sweep(self) -> None:
        """Remove what attempts uploaded that are over and did not record it."""
        async with self.pool.acquire() as connection:
            abandoned = await output_store.abandoned_uploads(connection)
        for run_id, attempt in abandoned:
            await self._in_thread(_remove, self.objects, run_id, attempt)
            async with self.pool.acquire() as connection:
                await output_store.forget_upload(connection, run_id, attempt, ended_before_seconds=_SETTLED_SECONDS)

    async def _begin(self, run: Assignment) -> bool:
        async with self.pool.acquire() as connection:
            return await output_store.begin_upload(connection, run.id, run.lease)

    async def _end_broken(self, run: Assignment) -> None:
        """End what S3 has begun to take in parts and nobody completes, since it, or its answer, was lost on the way."""
        try:
            await self._in_thread(self.objects.abort_uploads, output_key(run.id, run.attempts, ""))
        except ObjectStoreUnavailable as error:
            _log.warning("uploads_not_removed", run=run.id, attempt=run.attempts, error=error.message)

    async def _in_thread(self, work: Callable[..., Value], *arguments: Any) -> Value:
        return await asyncio.get_running_loop().run_in_executor(self.threads, work, *arguments)


async def upload_outputs(
    objects: RunObjects,
    threads: Executor,
    order: Order,
    directory: Path,
    found: list[FoundOutput],
    *,
    lost: threading.Event,
) -> list[Output]:
    """Upload files below `directory`, some at a time, and describe them: all, or the first error once no thread works.

    RunFailed where that can't be done, AttemptInterrupted when the lease is `lost`.
    """
    turns, failures = asyncio.Semaphore(_PARALLEL_UPLOADS), list[Exception]()
    until = time.monotonic() + _PATIENCE_SECONDS
    loop = asyncio.get_running_loop()

    def over() -> bool:
        return bool(failures) or lost.is_set()

    async def upload(output: FoundOutput) -> Output | None:
        key = output_key(order.run_id, order.attempt, output.path)
        async with turns:
            while True:
                try:
                    return await loop.run_in_executor(threads, _upload, objects, key, directory, output, over)
                except Exception as error:  # noqa: BLE001  # raised below, or tried again
                    if over() or not _is_unavailable(error) or time.monotonic() >= until:
                        failures.append(error)
                        return None
                _log.warning("output_not_stored_yet", run=order.run_id, path=output.path)
                await asyncio.sleep(_PAUSE_SECONDS)

    uploaded = await asyncio.gather(*map(upload, found))
    if failures:
        raise failures[0]
    return [output for output in uploaded if output is not None]


def _is_unavailable(error: Exception) -> bool:
    return isinstance(error, RunFailed) and isinstance(error.__cause__, ObjectStoreUnavailable)


def _upload(objects: RunObjects, key: str, directory: Path, output: FoundOutput, over: Callable[[], bool]) -> Output:
    if over():
        raise AttemptInterrupted
    digest = hashlib.sha256()
    size = 0
    content_type = content_type_of(output.path)
    try:
        with open_output(directory / output.path) as file:
            part = file.read(PART_BYTES)
            digest.update(part)
            size = len(part)
            if size < PART_BYTES:
                objects.put(key, part, content_type=content_type)
            else:
                size += _upload_parts(objects.upload(key, content_type=content_type), part, file, digest, over)
    except ObjectStoreUnavailable as error:
        raise RunFailed(
            "object_store_unavailable", f"The output {output.path} could not be stored: {error.message}."
        ) from error
    except OSError as error:
        raise RunFailed(
            "output_unreadable", f"The output {output.path} could not be read: {error.strerror}."
        ) from error
    return Output(path=output.path, size=size, digest=f"sha256:{digest.hexdigest()}", content_type=content_type)


def _upload_parts(
    upload: PartsUpload, part: bytes, file: BinaryIO, digest: "hashlib._Hash", over: Callable[[], bool]
) -> int:
    """Send `part` and the rest of `file`; the number of bytes of the rest."""
    size = 0
    try:
        while part:
            if over():
                raise AttemptInterrupted
            upload.write(part)
            part = file.read(PART_BYTES)
            digest.update(part)
            size += len(part)
        upload.complete()
    except BaseException:
        upload.abort()
        raise
    return size


def _remove(objects: ObjectStore, run_id: str, attempt: int) -> None:
    prefix = output_key(run_id, attempt, "")
    objects.abort_uploads(prefix)
    for key in list(objects.list(prefix)):
        objects.delete(key)
