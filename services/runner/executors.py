"""Ways to make an attempt: in the runner's own process, or somewhere else."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from concurrent.futures import Executor as ThreadPool
from dataclasses import dataclass
from typing import Protocol

from libs.common.journal import JournalWriter
from services.runner.attempt import Attempt, Workshop
from services.runner.cells import CellKind, Cells
from services.runner.compatibility import Runtimes
from services.runner.endings import Outcome
from services.runner.events import EVENT_OVERHEAD_BYTES
from services.runner.interrupts import Interrupts
from services.runner.lease_holder import LeaseHolder, Stock
from services.runner.limits import Language
from services.runner.memory import MemoryBudget
from services.runner.sandbox.cgroups import ControlGroups
from services.runner.sandbox.ladder import choose_sandbox, find_bubblewrap
from services.runner.sandbox.layers import Confinement
from services.runner.scratch import Scratch
from services.runner.settings import RunnerSettings
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

    async def sweep(self) -> None:
        """End and remove what attempts left of runners that are gone."""


@dataclass(frozen=True, slots=True)
class ProcessExecutor:
    """Makes attempts here: the job is a process of this machine."""

    workshop: Workshop
    stock: Stock
    scratch: Scratch

    def attempt(self, run: Assignment, log: JournalWriter, interrupts: Interrupts) -> Attempting:
        """An attempt in this process."""
        holder = LeaseHolder(self.stock, run, log, interrupts)
        return Attempt(self.workshop, holder.order, holder)

    async def sweep(self) -> None:
        """Remove directories of runners that are gone, and end what still runs there."""
        await asyncio.to_thread(self.scratch.sweep)


@contextlib.asynccontextmanager
async def process_executor(settings: RunnerSettings, stock: Stock, threads: ThreadPool) -> AsyncIterator[Executor]:
    """One with the interpreters, the sandbox and the directories of this machine; interpreters wait meanwhile."""
    runtimes = await Runtimes.find(settings.node, settings.python)
    rules = settings.rules()
    async with contextlib.AsyncExitStack() as stack:
        scratch = await asyncio.to_thread(Scratch.open, settings.scratch_dir)
        stack.push_async_callback(asyncio.to_thread, scratch.close)
        sandbox = await choose_sandbox(
            settings.sandbox,
            settings.sandbox_minimum,
            find_bubblewrap(settings.bubblewrap),
            runtimes.program("python"),
            scratch,
        )
        languages: tuple[Language, ...] = ("node", "python")
        cells = Cells(
            runtimes,
            sandbox,
            scratch,
            await asyncio.to_thread(ControlGroups.claim),
            threads,
            kinds=tuple(CellKind(language, network=False, limits=rules.limits) for language in languages),
            warm=settings.concurrency if settings.warm is None else settings.warm,
            max_event_bytes=rules.max_result_bytes + EVENT_OVERHEAD_BYTES,
        )
        await stack.enter_async_context(cells.warmed())
        memory = MemoryBudget(settings.total_memory_bytes or settings.concurrency * settings.memory_bytes)
        yield ProcessExecutor(Workshop(rules, cells, memory, runtimes, threads), stock, scratch)
