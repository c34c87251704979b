"""The holder of the lease, as an agent has it: somebody at the other end of a socket."""

import contextlib
import hashlib
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from typing import Any, Literal, cast

from libs.common.object_errors import translated, while_uploading
from libs.common.objects import ObjectBody, output_key
from libs.common.s3_requests import PresignedRequest, PresignedRequests
from services.runner.endings import AttemptInterrupted
from services.runner.holder import Order, Provision
from services.runner.interrupts import Interrupts
from services.runner.remote.link import HolderLink
from services.runner.remote.messages import (
    Assigned,
    Confined,
    Line,
    Phases,
    Progress,
    Question,
    Started,
    WantAbortion,
    WantCompletion,
    WantPart,
    WantPut,
    WantRead,
    WantUpload,
    WantUploading,
)
from services.runner.sandbox.layers import Confinement
from services.runner.store import Timings
from services.runner.values import parse_json

_MAX_LINE_CHARACTERS = 64 * 1024


class RemoteHolder:
    """A `Holder`."""

    def __init__(self, link: HolderLink, assigned: Assigned, interrupts: Interrupts) -> None:
        self._link = link
        self._provision = assigned.provision
        self.order = replace(assigned.order, parameters=parse_json(assigned.parameters))
        self.interrupts = interrupts
        self.log = RemoteLog(link)
        self.objects = RemoteObjects(link, self.order)

    def close(self) -> None:
        """Close the connections to the bucket."""
        self.objects.close()

    async def provide(self) -> Provision:
        """What came with the order."""
        return self._provision

    async def started(self, timings: Timings, confinement: Confinement | None) -> None:
        """Tell it."""
        self._link.say(Started(phases=Phases.of(timings), confined=confined(confinement)))

    async def progressed(self, fraction: float | None, message: str | None) -> None:
        """Tell it."""
        self._link.say(Progress(fraction=fraction, message=message))

    @contextlib.asynccontextmanager
    async def uploading(self, *, in_parts: bool) -> AsyncIterator[None]:
        """Let it know. It discards by itself what is of no use."""
        await self._link.ask(lambda number: WantUploading(id=number, in_parts=in_parts))
        yield


class RemoteLog:
    """The log of the run."""

    def __init__(self, link: HolderLink) -> None:
        self._link = link

    def write(self, source: str, message: str, *, level: str = "info", fields: dict[str, Any] | None = None) -> None:
        """Add a message, an entry for each of its lines."""
        for text in message.replace("\x00", "\ufffd").split("\n"):
            self._link.write(
                Line(
                    source=cast("Literal['stdout', 'stderr', 'logger', 'system']", source),
                    level=cast("Literal['debug', 'info', 'warning', 'error']", level),
                    message=text[:_MAX_LINE_CHARACTERS],
                    fields=fields,
                )
            )
            fields = None


class RemoteObjects:
    """The way to the bucket: each request is signed by the holder, and sent from here. Blocks."""

    def __init__(self, link: HolderLink, order: Order) -> None:
        self._link = link
        self._outputs = output_key(order.run_id, order.attempt, "")
        self._requests = PresignedRequests(connections=8)

    def close(self) -> None:
        """Close the connections."""
        self._requests.close()

    def read(self, key: str) -> ObjectBody:
        """Open the bundle, or an input."""
        request = _granted(self._link, lambda number: WantRead(id=number, key=key))
        with translated("read", key):
            return ObjectBody.of(key, self._requests.send(request, stream=True))

    def put(self, key: str, data: bytes, *, content_type: str) -> None:
        """Write an output in one request."""
        path = key.removeprefix(self._outputs)
        request = _granted(
            self._link, lambda number: WantPut(id=number, path=path, size=len(data), digest=_digest(data))
        )
        with translated("write", key):
            self._requests.send(request, body=data)

    def upload(self, key: str, *, content_type: str) -> "RemoteUpload":
        """Begin to write an output in parts."""
        path = key.removeprefix(self._outputs)
        self._link.ask_from_thread(lambda number: WantUpload(id=number, path=path))
        return RemoteUpload(self._link, self._requests, key, path)


class RemoteUpload:
    """An output on its way in parts. Blocks."""

    def __init__(self, link: HolderLink, requests: PresignedRequests, key: str, path: str) -> None:
        self._link = link
        self._requests = requests
        self._key = key
        self._path = path
        self._etags: list[str] = []
        self._whole = hashlib.sha256()

    def write(self, data: bytes) -> None:
        """Send the next part."""
        self._whole.update(data)
        request = _granted(
            self._link,
            lambda number: WantPart(
                id=number, path=self._path, number=len(self._etags) + 1, size=len(data), digest=_digest(data)
            ),
        )
        with while_uploading(self._key):
            self._etags.append(self._requests.send(request, body=data).headers["ETag"])

    def complete(self) -> None:
        """Make the object visible."""
        digest = f"sha256:{self._whole.hexdigest()}"
        self._link.ask_from_thread(
            lambda number: WantCompletion(id=number, path=self._path, digest=digest, etags=self._etags)
        )

    def abort(self) -> None:
        """Forget the parts. Where the holder is gone it does so by itself."""
        with contextlib.suppress(AttemptInterrupted):
            self._link.ask_from_thread(lambda number: WantAbortion(id=number, path=self._path))


def confined(confinement: Confinement | None) -> Confined | None:
    """The same for the wire."""
    if confinement is None:
        return None
    return Confined(level=confinement.level, layers=list(confinement.layers), network=confinement.network)


def _granted(link: HolderLink, make: Callable[[int], Question]) -> PresignedRequest:
    request = link.ask_from_thread(make)
    if request is None:
        raise LookupError("the answer has no request")
    return request


def _digest(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"
