"""The work behind accepted imports: a task for each, a heartbeat for all, and an orderly end."""

import asyncio
import os
import secrets
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TypeAlias

import asyncpg

from libs.common.client import RegistryClient
from libs.common.completion import in_thread
from libs.common.errors import StowageError, Unavailable
from libs.common.log import get_logger
from libs.common.models import Failure, ImportState
from services.builder.builds import Assignment, Builds
from services.builder.definitions import Registered, register
from services.builder.ledger import DEFINITIONS_UPDATED, HolderLost, Ledger
from services.builder.sources import Example

_STOPPED = Failure(
    type="builder-stopped",
    message="the builder was stopped while it worked on it; run the import again.",
)
_BROKE = Failure(
    type="internal",
    message="something went wrong on our side. The builder's own log has it under the import's id.",
)

Conclusion: TypeAlias = tuple[ImportState, Failure | None]
DATABASE_ERRORS = (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError)

_log = get_logger("builder")


@dataclass(frozen=True, slots=True)
class Order:
    """An accepted import."""

    import_id: str
    example: Example
    assignments: list[Assignment]


def new_holder() -> str:
    """A name for this process that no other has or will have."""
    return f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}"


class Worker:
    """Works on the imports that this builder accepted."""

    def __init__(self, ledger: Ledger, builds: Builds, registry: RegistryClient, heartbeat_seconds: float) -> None:
        self._ledger = ledger
        self._builds = builds
        self._registry = registry
        self._heartbeat_seconds = heartbeat_seconds
        self._tasks: set[asyncio.Task[None]] = set()
        self._work_of: dict[str, asyncio.Task[Conclusion]] = {}
        self._stopping = False

    @property
    def holder(self) -> str:
        """Who holds what is accepted here."""
        return self._ledger.holder

    def require_open(self) -> None:
        """Raise Unavailable when nothing new is accepted."""
        if self._stopping:
            raise Unavailable("this builder is being stopped. Try again in a moment.")

    def accept(self, order: Order) -> None:
        """Begin to work on an import that is written down with this holder; it goes on by itself."""
        work = asyncio.create_task(self._work(order))
        self._work_of[order.import_id] = work
        task = asyncio.create_task(self._see_through(order, work))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        if self._stopping:
            work.cancel()

    @asynccontextmanager
    async def beating(self) -> AsyncIterator[None]:
        """Keep the imports from counting as lost while the context is open; stop them at its end."""
        heartbeat = asyncio.create_task(self._beat())
        try:
            yield
        finally:
            await self.stop()
            heartbeat.cancel()
            await asyncio.gather(heartbeat, return_exceptions=True)

    async def stop(self) -> None:
        """Stop what is being worked on: processes are killed, workspaces removed, imports marked as failed."""
        self._stopping = True
        for work in self._work_of.values():
            work.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _beat(self) -> None:
        while True:
            await asyncio.sleep(self._heartbeat_seconds)
            running = list(self._work_of)
            if not running:
                continue
            try:
                held = await self._ledger.heartbeat(running)
            except DATABASE_ERRORS as error:
                _log.warning("heartbeat_failed", error=str(error))
                continue
            for import_id in set(running) - held:
                if work := self._work_of.get(import_id):
                    work.cancel()  # it was declared lost, and belongs to nobody now

    async def _see_through(self, order: Order, work: "asyncio.Task[Conclusion]") -> None:
        """Write down how the work ended. It is the work that is cancelled, never this."""
        try:
            state, error = await work
        except HolderLost:
            _log.warning("import_taken_away", import_id=order.import_id)
            return
        except asyncio.CancelledError:
            state, error = ImportState.FAILED, _STOPPED
        except Exception:  # noqa: BLE001  # whatever it was, the import has ended
            _log.exception("import_broke", import_id=order.import_id)
            state, error = ImportState.FAILED, _BROKE
        finally:
            del self._work_of[order.import_id]
        await self._finish(order, state, error)

    async def _work(self, order: Order) -> Conclusion:
        await self._ledger.start_import(order.import_id)
        try:
            async with asyncio.TaskGroup() as group:
                builds = {
                    assignment.slug: group.create_task(self._builds.carry_out(assignment))
                    for assignment in order.assignments
                }
        except BaseExceptionGroup as errors:
            if errors.subgroup(HolderLost):
                raise HolderLost(order.import_id) from errors
            raise
        built = [slug for slug, task in builds.items() if task.result()]
        failed = [slug for slug, task in builds.items() if not task.result()]
        registered = await self._register(order, built)
        await self._ledger.tell(
            order.import_id,
            DEFINITIONS_UPDATED,
            {
                "jobs": registered.jobs,
                "workflows": registered.workflows,
                "leftOut": registered.left_out,
                "problems": registered.problems,
            },
        )
        return _conclusion(built, failed, registered.problems)

    async def _register(self, order: Order, built: list[str]) -> Registered:
        try:
            definitions = await in_thread(order.example.definitions)
            registered = await register(self._registry, definitions, built)
        except StowageError as error:
            registered = Registered(problems=[f"jobs and workflows were not brought up to date: {error.message}"])
        _log.info(
            "definitions_updated",
            import_id=order.import_id,
            jobs=registered.jobs,
            workflows=registered.workflows,
            left_out=registered.left_out,
            problems=registered.problems,
        )
        return registered

    async def _finish(self, order: Order, state: ImportState, error: Failure | None) -> None:
        try:
            unfinished = await self._ledger.finish_import(order.import_id, state, error)
        except HolderLost:
            _log.warning("import_taken_away", import_id=order.import_id)
            return
        except DATABASE_ERRORS as failure:
            _log.error("import_not_finished", import_id=order.import_id, error=str(failure))
            return  # nobody says any more that it is being worked on: the recovery will find it lost
        _log.info(
            "import_finished",
            import_id=order.import_id,
            example=order.example.name,
            state=state.value,
            error=error.message if error else None,
        )
        if error is not None:
            await self._builds.close_logs(unfinished, error.message)


def _conclusion(built: list[str], failed: list[str], problems: list[str]) -> Conclusion:
    sentences = list(problems)
    if failed:
        sentences.insert(
            0,
            f"{len(failed)} of {len(built) + len(failed)} bundles failed: {', '.join(failed)}. See what each build "
            "says, mend it, and run the import again.",
        )
    if not sentences:
        return ImportState.SUCCEEDED, None
    state = ImportState.PARTIALLY_FAILED if built else ImportState.FAILED
    kind = "bundles-failed" if failed else "definitions-failed"
    return state, Failure(type=kind, message=" ".join(sentences))
