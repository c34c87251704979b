"""What a run leaves in `outputs/`: found, uploaded, and described."""

import asyncio
import hashlib
import mimetypes
import os
import stat
import threading
from collections.abc import Iterator
from concurrent.futures import Executor
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from libs.common.models import Output
from libs.common.objects import PART_BYTES, ObjectStore, ObjectStoreUnavailable, Upload, output_key
from services.runner.endings import AttemptInterrupted, RunFailed

_MAX_PATH_BYTES = 900  # keys have 1024 at most, and begin with the run's id
_PARALLEL_UPLOADS = 4

_TYPES = mimetypes.MimeTypes()
for _type, _suffix in (
    ("application/geo+json", ".geojson"),
    ("application/vnd.apache.parquet", ".parquet"),
    ("application/x-ndjson", ".ndjson"),
    ("application/yaml", ".yaml"),
    ("application/yaml", ".yml"),
    ("text/markdown", ".md"),
    ("text/plain", ".log"),
):
    _TYPES.add_type(_type, _suffix)


@dataclass(frozen=True, slots=True)
class OutputLimits:
    """How much a run may leave."""

    max_files: int
    max_bytes: int


@dataclass(frozen=True, slots=True)
class FoundOutput:
    """A regular file below `outputs/`."""

    path: str
    size: int


@dataclass(frozen=True, slots=True)
class FoundOutputs:
    """The regular files, in order, and the paths of what is neither file nor directory."""

    files: list[FoundOutput]
    skipped: list[str]


def find_outputs(directory: Path, limits: OutputLimits) -> FoundOutputs:
    """What is below `directory`. No symbolic link is followed. Blocks.

    RunFailed when there is more than the limits allow, or a name that can't be a key.
    """
    if Path(os.path.realpath(directory)) != directory:
        raise RunFailed(
            "output_unreadable", "The directory for outputs was replaced by a link; nothing was taken from it."
        )
    try:
        return _find(directory, limits)
    except OSError as error:
        raise RunFailed("output_unreadable", f"The outputs could not be listed: {error.strerror}.") from error


def _find(directory: Path, limits: OutputLimits) -> FoundOutputs:
    found: list[FoundOutput] = []
    skipped: list[str] = []
    total = 0
    for path, entry in _walk(directory, ""):
        kind = entry.stat(follow_symlinks=False)
        if not stat.S_ISREG(kind.st_mode):
            skipped.append(path)
            continue
        _require_key(path)
        total += kind.st_size
        found.append(FoundOutput(path, kind.st_size))
        if len(found) > limits.max_files:
            raise RunFailed("outputs_too_many", f"The run left more than {limits.max_files} files, which is the limit.")
        if total > limits.max_bytes:
            raise RunFailed(
                "outputs_too_large", f"The files that the run left have more than {limits.max_bytes} bytes, the limit."
            )
    return FoundOutputs(sorted(found, key=lambda output: output.path), skipped)


async def upload_outputs(
    objects: ObjectStore,
    run_id: str,
    directory: Path,
    found: list[FoundOutput],
    interrupted: threading.Event,
    threads: Executor,
) -> list[Output]:
    """Upload files below `directory`, some at a time, and describe them. RunFailed, or AttemptInterrupted."""
    loop = asyncio.get_running_loop()
    turns = asyncio.Semaphore(_PARALLEL_UPLOADS)

    async def upload(output: FoundOutput) -> Output:
        async with turns:
            return await loop.run_in_executor(threads, _upload, objects, run_id, directory, output, interrupted)

    tasks = [asyncio.create_task(upload(output)) for output in found]
    try:
        return [await task for task in tasks]
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def remove_outputs(objects: ObjectStore, run_id: str) -> None:
    """Delete what an earlier attempt uploaded and nobody recorded. Blocks."""
    for key in list(objects.list(output_key(run_id, ""))):
        objects.delete(key)


def content_type_of(path: str) -> str:
    """The media type that a file's name suggests."""
    guessed, encoding = _TYPES.guess_type(path)
    if encoding is not None or guessed is None:
        return {"gzip": "application/gzip"}.get(encoding or "", "application/octet-stream")
    return guessed


def _walk(directory: Path, prefix: str) -> Iterator[tuple[str, os.DirEntry[str]]]:
    waiting = [(os.fspath(directory), prefix)]
    while waiting:
        place, above = waiting.pop()
        with os.scandir(place) as entries:
            for entry in entries:
                path = f"{above}{entry.name}"
                if entry.is_dir(follow_symlinks=False):
                    waiting.append((entry.path, f"{path}/"))
                else:
                    yield path, entry


def _require_key(path: str) -> None:
    shown = path.encode("utf-8", "backslashreplace").decode()[:200]
    if not path.isprintable():
        raise RunFailed(
            "output_name", f"The name of the output {shown!r} has characters that can't be shown. Rename it."
        )
    if len(path.encode()) > _MAX_PATH_BYTES:
        raise RunFailed("output_name", f"The path of the output {shown}… is longer than {_MAX_PATH_BYTES} bytes.")


def _upload(
    objects: ObjectStore, run_id: str, directory: Path, output: FoundOutput, interrupted: threading.Event
) -> Output:
    if interrupted.is_set():
        raise AttemptInterrupted
    digest = hashlib.sha256()
    size = 0
    key, content_type = output_key(run_id, output.path), content_type_of(output.path)
    try:
        with _open(directory / output.path) as file:
            part = file.read(PART_BYTES)
            digest.update(part)
            size = len(part)
            if size < PART_BYTES:
                objects.put(key, part, content_type=content_type)
            else:
                size += _upload_parts(objects.upload(key, content_type=content_type), part, file, digest, interrupted)
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
    upload: Upload, part: bytes, file: BinaryIO, digest: "hashlib._Hash", interrupted: threading.Event
) -> int:
    """Send `part` and the rest of `file`; the number of bytes of the rest."""
    size = 0
    try:
        while part:
            if interrupted.is_set():
                raise AttemptInterrupted
            upload.part(part)
            part = file.read(PART_BYTES)
            digest.update(part)
            size += len(part)
        upload.complete()
    except BaseException:
        upload.abort()
        raise
    return size


def _open(path: Path) -> BinaryIO:
    return os.fdopen(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC), "rb")
