"""Where an agent is started for an attempt, seen from what such places have in common."""

from collections.abc import Awaitable, Callable, Collection, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Protocol, TypeAlias

from services.runner.endings import Outcome
from services.runner.holder import Order
from services.runner.limits import JobLimits


@dataclass(frozen=True, slots=True)
class Contents:
    """Files, and how large they are together."""

    files: int
    size: int


@dataclass(frozen=True, slots=True)
class Placement:
    """An attempt that is to be made somewhere.

    `token` is what the agent takes it with. `lease` is the holder's. `inputs` are files of other runs that it is given.
    """

    order: Order
    lease: str
    limits: JobLimits
    timeout_seconds: float
    inputs: Contents
    network: bool
    token: str = field(repr=False)


Held: TypeAlias = Callable[[Collection[str]], Awaitable[Mapping[str, str | None]]]
"""Of those runs that are known, under which lease an attempt at each is being made; None where none is."""


class Placed(Protocol):
    """An agent that is to be started, was started, or has ended."""

    def taken(self, name: str) -> None:
        """Its agent has taken the attempt, and is on the machine or pod of this name."""

    async def over(self) -> Outcome:
        """Wait until nothing more can come of it, and say why."""

    async def look(self) -> None:
        """See what became of it, of which it may not have been told: `over` takes account of it."""

    def not_begun(self, seconds: float) -> Outcome:
        """Why its agent has not taken the attempt within so many seconds, as far as can be told."""

    def told(self) -> str:
        """What it is, and where, to complete the sentence “The connection to … ended”."""


class Place(Protocol):
    """Somewhere that agents are started."""

    def placed(self, placement: Placement) -> AbstractAsyncContextManager[Placed]:
        """An agent that is being started. When the context ends, nothing of it is left, and what it was doing ends."""

    async def sweep(self, held: Held) -> None:
        """End the agents of runners that are gone."""
