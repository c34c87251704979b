"""Places for runs: a directory, and an interpreter that waits in a sandbox over it. Some wait before a run needs them.

A cell is used once. It is made ready while nobody waits for it: what a run then pays for is a message over a pipe.
"""

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Executor
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from itertools import count
from typing import Any

from libs.common.log import get_logger
from services.runner.compatibility import Runtimes
from services.runner.limits import JobLimits, Language
from services.runner.process import JobProcess
from services.runner.sandbox.cgroups import ControlGroup, ControlGroups
from services.runner.sandbox.layers import Confinement, Interior, Sandbox, environment_of
from services.runner.scratch import RunDirectory, Scratch

_log = get_logger("runner")


@dataclass(frozen=True, slots=True)
class CellKind:
    """What makes one cell as good as another."""

    language: Language
    network: bool
    limits: JobLimits


@dataclass(frozen=True, slots=True)
class Cell:
    """A directory, and the process that waits there for its control line."""

    directory: RunDirectory
    interior: Interior
    confinement: Confinement
    process: JobProcess
    context: AbstractContextManager[RunDirectory]


class Cells:
    """Makes cells, keeps `warm` of each of `kinds` ready, and removes them."""

    def __init__(
        self,
        runtimes: Runtimes,
        sandbox: Sandbox,
        scratch: Scratch,
        groups: ControlGroups | None,
        threads: Executor,
        *,
        kinds: tuple[CellKind, ...],
        warm: int,
        max_event_bytes: int,
    ) -> None:
        self._runtimes = runtimes
        self._sandbox = sandbox
        self._scratch = scratch
        self._groups = groups
        self._threads = threads
        self._max_event_bytes = max_event_bytes
        self._names = count(1)
        self._warm: dict[CellKind, deque[asyncio.Task[Cell]]] = {kind: deque() for kind in kinds}
        self._warm_count = warm

    @contextlib.asynccontextmanager
    async def warmed(self) -> AsyncIterator[None]:
        """Keep cells ready for as long as the context is open."""
        self.refill()
        try:
            yield
        finally:
            waiting = [task for tasks in self._warm.values() for task in tasks]
            self._warm.clear()
            for cell in await asyncio.gather(*waiting, return_exceptions=True):
                if isinstance(cell, Cell):
                    await self.remove(cell)

    async def take(self, kind: CellKind, bundle_bytes: int) -> Cell:
        """A cell of this kind for a bundle that unpacks to `bundle_bytes`; give it back with `remove`.

        OSError when none can be made.
        """
        waiting = self._warm.get(kind)
        while waiting:
            try:
                cell = await waiting.popleft()
            except OSError as error:
                _log.warning("cell_not_started", error=str(error))
                continue
            if not cell.process.has_ended and self._scratch.has_room(cell.directory, bundle_bytes):
                return cell
            await self.remove(cell)
        return await self._make(kind, bundle_bytes)

    async def remove(self, cell: Cell) -> None:
        """End what runs in a cell, and remove its directory."""
        await asyncio.shield(self._remove_now(cell))

    async def _remove_now(self, cell: Cell) -> None:
        try:
            await cell.process.close()
        finally:
            await self._in_thread(cell.context.__exit__, None, None, None)

    def refill(self) -> None:
        """See to it that cells wait for the runs to come."""
        for kind, waiting in self._warm.items():
            while len(waiting) < self._warm_count:
                task = asyncio.create_task(self._make(kind, 0))
                task.add_done_callback(_retrieve)
                waiting.append(task)

    async def _make(self, kind: CellKind, bundle_bytes: int) -> Cell:
        context = self._scratch.run_directory(f"cell-{next(self._names)}", bundle_bytes=bundle_bytes)
        directory = await self._in_thread(context.__enter__)
        try:
            return await self._start(kind, directory, context)
        except BaseException:
            await asyncio.shield(self._in_thread(context.__exit__, None, None, None))
            raise

    async def _start(
        self, kind: CellKind, directory: RunDirectory, context: AbstractContextManager[RunDirectory]
    ) -> Cell:
        program = self._runtimes.program(kind.language)
        inside = self._sandbox.interior(program, directory)
        if kind.language == "node":
            heap = max(16, kind.limits.memory_bytes * 3 // 4 // 1024**2)
            arguments = [f"--max-old-space-size={heap}", f"{inside.harnesses}/node.mjs"]
        else:
            arguments = ["-I", "-S", "-X", "utf8", f"{inside.harnesses}/python.py"]
        group = self._group(directory, kind.limits)
        try:
            process = await JobProcess.start(
                lambda descriptors, handshake: self._sandbox.wrap(
                    program, directory, [*arguments, *descriptors], handshake, network=kind.network
                ),
                directory=directory.bundle,
                environment=environment_of(inside),
                marker=directory.marker,
                limits=kind.limits.of_process(kind.language),
                max_event_bytes=self._max_event_bytes,
                group=group,
            )
        except BaseException:
            if group is not None:
                await asyncio.shield(self._in_thread(group.remove))
            raise
        return Cell(directory, inside, self._confinement(kind), process, context)

    def _group(self, directory: RunDirectory, limits: JobLimits) -> ControlGroup | None:
        if self._groups is None:
            return None
        return self._groups.create(directory.root.name, memory_bytes=limits.memory_bytes, processes=limits.processes)

    def _confinement(self, kind: CellKind) -> Confinement:
        """What the sandbox gives, and with control groups that."""
        found = self._sandbox.confinement(network=kind.network)
        if self._groups is None:
            return found
        names = ("cgroup", *(f"cgroup-{name}" for name in sorted(self._groups.controllers)))
        return replace(found, layers=(*found.layers, *names))

    async def _in_thread(self, work: Callable[..., Any], *arguments: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._threads, work, *arguments)


def _retrieve(task: asyncio.Task[Cell]) -> None:
    """Whoever takes the cell is told of its error; if nobody does, nobody needs to know."""
    if not task.cancelled():
        task.exception()
