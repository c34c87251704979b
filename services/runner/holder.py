"""What passes between an attempt and whoever holds the lease of its run.

An attempt is made in the holder's own process, or elsewhere by an agent that has a socket to the holder and nothing
else: no database, no credentials. It can't tell which, since it asks and tells the same either way.
"""

from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Any, Protocol

from libs.common.models import Artifact, Limits
from libs.common.objects import ObjectBody
from services.runner.fetching import PlannedInput
from services.runner.interrupts import Interrupts
from services.runner.sandbox.layers import Confinement
from services.runner.store import Timings


@dataclass(frozen=True, slots=True)
class Order:
    """What is to be executed, by one attempt."""

    run_id: str
    attempt: int
    slug: str
    version: str
    digest: str
    artifact: Artifact
    limits: Limits
    parameters: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Provision:
    """What an attempt is given besides its bundle: the values of secrets by their names, and what its inputs are."""

    secrets: Mapping[str, str] = field(repr=False)
    inputs: list[PlannedInput]


class Log(Protocol):
    """The log of a run, open at its end."""

    def write(self, source: str, message: str, *, level: str = "info", fields: dict[str, Any] | None = None) -> None:
        """Add a message, an entry for each of its lines."""


class PartsUpload(Protocol):
    """An object on its way to the bucket in parts. Its methods block; errors are those of libs.common.objects."""

    def write(self, data: bytes, /) -> None:
        """Send the next part: PART_BYTES, or less for the last."""

    def complete(self) -> None:
        """Make the object visible."""

    def abort(self) -> None:
        """Forget the parts."""


class RunObjects(Protocol):
    """Of the bucket, what concerns one attempt. Its methods block; errors are those of libs.common.objects."""

    def read(self, key: str) -> ObjectBody:
        """Open the bundle, or an input."""

    def put(self, key: str, data: bytes, *, content_type: str) -> None:
        """Write an output in one request."""

    def upload(self, key: str, *, content_type: str) -> PartsUpload:
        """Begin to write an output in parts."""


class Holder(Protocol):
    """Who holds the lease of an attempt's run."""

    @property
    def log(self) -> Log:
        """The log of the run."""

    @property
    def interrupts(self) -> Interrupts:
        """What may cut the attempt short."""

    @property
    def objects(self) -> RunObjects:
        """The way to the bucket."""

    async def provide(self) -> Provision:
        """What the attempt is given. RunFailed where something of it is not to be had, or the bundle is quarantined."""

    async def started(self, timings: Timings, confinement: Confinement | None) -> None:
        """The handler is being called, confined so; the timings up to there."""

    async def progressed(self, fraction: float | None, message: str | None) -> None:
        """How far the handler says it is."""

    def uploading(self, *, in_parts: bool) -> AbstractAsyncContextManager[None]:
        """Outputs may be written while the context is open, `in_parts` where any of them is that large.

        They are discarded when it ends by an error. AttemptInterrupted where the lease is lost.
        """
