"""Ways to make an attempt: in the runner's own process, or somewhere else."""

from dataclasses import dataclass
from typing import Protocol

from libs.common.journal import JournalWriter
from services.runner.attempt import Attempt, Workshop
from services.runner.endings import Outcome
from services.runner.interrupts import Interrupts
from services.runner.lease_holder import LeaseHolder, Stock
from services.runner.sandbox.layers import Confinement
from services.runner.store import Assignment, Timings


class Attempting(Protocol):
    """An attempt, as whoever holds the lease of its run sees it."""

    @property
    def timings(self) -> Timings:
        """What its phases have cost so far."""

    @property
    def confinement(self) -> Confinement | None:
        """How its job is confined, where that is known."""

    @property
    def received_bytes(self) -> int:
        """What has come of the bucket so far."""

    @property
    def handler_called(self) -> bool:
        """Whether its handler was called, or may have been."""

    async def execute(self) -> Outcome:
        """See it through, or raise AttemptInterrupted. Nothing of it goes on after that."""


class Executor(Protocol):
    """Makes attempts."""

    def attempt(self, run: Assignment, log: JournalWriter, interrupts: Interrupts) -> Attempting:
        """An attempt at a run that was leased."""


@dataclass(frozen=True, slots=True)
class ProcessExecutor:
    """Makes attempts here: the job is a process of this machine."""

    workshop: Workshop
    stock: Stock

    def attempt(self, run: Assignment, log: JournalWriter, interrupts: Interrupts) -> Attempting:
        """An attempt in this process."""
        holder = LeaseHolder(self.stock, run, log, interrupts)
        return Attempt(self.workshop, holder.order, holder)
