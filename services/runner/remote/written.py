"""Outputs that an agent writes: it says what it wants to write, and the holder of the lease decides what it may.

All that an output is recorded as comes from here: its path and size, and the digest that the bucket was told to expect.
Only of one that comes in parts the digest of the whole is the agent's word: the bucket compares each part.
"""

import asyncio
import base64
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass, field
from typing import Any, TypeVar

from libs.common.models import Output
from libs.common.object_uploads import PART_BYTES, Upload
from libs.common.objects import ObjectStore, output_key
from libs.common.s3_requests import PresignedRequest
from services.runner.endings import RunFailed
from services.runner.holder import Order
from services.runner.outputs import OutputLimits, content_type_of, require_key
from services.runner.remote.messages import NotUnderstood

REQUEST_SECONDS = 120
"""How long a request may be sent after it was signed."""


Value = TypeVar("Value")


@dataclass(slots=True)
class _InParts:
    upload: Upload
    sizes: list[int] = field(default_factory=list)
    checksums: list[str] = field(default_factory=list)


class WrittenOutputs:
    """What one attempt writes. It is kept by the event loop; what asks the bucket is done in `threads`."""

    def __init__(self, objects: ObjectStore, threads: Executor, order: Order, limits: OutputLimits) -> None:
        self._objects = objects
        self._threads = threads
        self._order = order
        self._limits = limits
        self._whole: dict[str, Output] = {}
        self._in_parts: dict[str, _InParts] = {}
        self._files = 0
        self._bytes = 0

    def put(self, path: str, size: int, digest: str) -> PresignedRequest:
        """A request that writes an output in one piece."""
        self._require(path)
        if size >= PART_BYTES:
            raise NotUnderstood(f"an output of {size} bytes is to be written in parts")
        wanted = Output(path=path, size=size, digest=digest, content_type=content_type_of(path))
        known = self._whole.get(path)
        if known is None:
            self._count(files=1, size=size)
            self._whole[path] = wanted
        elif known != wanted:
            raise NotUnderstood("an output was to be something else before")
        return self._objects.presigned_put(
            self._key(path),
            size=size,
            checksum=_checksum(digest),
            content_type=wanted.content_type,
            expires_seconds=REQUEST_SECONDS,
        )

    async def begin(self, path: str) -> None:
        """Begin to write an output in parts; what was sent of it before is forgotten."""
        self._require(path)
        if path in self._whole:
            raise NotUnderstood("an output is written already")
        if path in self._in_parts:
            await self.abort(path)
        self._count(files=1, size=0)
        self._in_parts[path] = _InParts(await self._in_thread(self._upload, path))

    def part(self, path: str, number: int, size: int, digest: str) -> PresignedRequest:
        """A request that sends a part: the next one, or the last one again."""
        begun = self._begun(path)
        if size > PART_BYTES or number not in (len(begun.sizes), len(begun.sizes) + 1):
            raise NotUnderstood("a part of an output is out of turn, or too large")
        if number > len(begun.sizes):
            self._count(files=0, size=size)
            begun.sizes.append(size)
            begun.checksums.append(_checksum(digest))
        elif (begun.sizes[-1], begun.checksums[-1]) != (size, _checksum(digest)):
            raise NotUnderstood("a part of an output was to be something else before")
        return begun.upload.presigned_part(
            number, size=size, checksum=begun.checksums[-1], expires_seconds=REQUEST_SECONDS
        )

    async def complete(self, path: str, digest: str, etags: list[str]) -> None:
        """Make an output of the parts that were sent."""
        begun = self._begun(path)
        if len(etags) != len(begun.sizes):
            raise NotUnderstood("an output has not as many parts as were sent")
        for etag, checksum in zip(etags, begun.checksums, strict=True):
            begun.upload.add_part(etag, checksum)
        await self._in_thread(begun.upload.complete)
        del self._in_parts[path]
        self._whole[path] = Output(path=path, size=sum(begun.sizes), digest=digest, content_type=content_type_of(path))

    async def abort(self, path: str) -> None:
        """Forget the parts that were sent."""
        if (begun := self._in_parts.pop(path, None)) is not None:
            self._files -= 1
            self._bytes -= sum(begun.sizes)
            await self._in_thread(begun.upload.abort)

    async def written(self) -> list[Output]:
        """What the bucket has of it, in order. RunFailed unless that is everything, as it was announced."""
        sizes = await self._in_thread(self._sizes) if self._whole else {}
        if self._in_parts or sizes != {path: output.size for path, output in self._whole.items()}:
            raise RunFailed(
                "outputs_incomplete",
                "The bucket does not have the outputs that the run was said to have left; nothing was recorded.",
            )
        return sorted(self._whole.values(), key=lambda output: output.path)

    def _begun(self, path: str) -> _InParts:
        if path not in self._in_parts:
            raise NotUnderstood("an output was not begun")
        return self._in_parts[path]

    def _require(self, path: str) -> None:
        if any(name in ("", ".", "..") for name in path.split("/")):
            raise NotUnderstood("the path of an output leads elsewhere")
        require_key(path)

    def _count(self, *, files: int, size: int) -> None:
        self._files += files
        self._bytes += size
        if self._files > self._limits.max_files:
            raise NotUnderstood(f"there are more than {self._limits.max_files} outputs, which is the limit")
        if self._bytes > self._limits.max_bytes:
            raise NotUnderstood(f"the outputs have more than {self._limits.max_bytes} bytes, which is the limit")

    def _upload(self, path: str) -> Upload:
        return self._objects.upload(self._key(path), content_type=content_type_of(path))

    def _sizes(self) -> dict[str, int]:
        """The size of each output that the bucket has, by path."""
        prefix = self._key("")
        return {item.key.removeprefix(prefix): item.size for page in self._objects.pages(prefix) for item in page}

    async def _in_thread(self, work: Callable[..., Value], *arguments: Any) -> Value:
        return await asyncio.get_running_loop().run_in_executor(self._threads, work, *arguments)

    def _key(self, path: str) -> str:
        return output_key(self._order.run_id, self._order.attempt, path)


def _checksum(digest: str) -> str:
    """A digest as S3 writes it."""
    return base64.b64encode(bytes.fromhex(digest.removeprefix("sha256:"))).decode()
