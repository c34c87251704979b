"""The work behind imports: a task for each, a heartbeat for all, and an orderly end."""

import asyncio
import os
import secrets
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TypeAlias

import asyncpg

from libs.common.background import beside
from libs.common.client import RegistryClient
from libs.common.completion import in_thread
from libs.common.errors import StowageError, Unavailable
from libs.common.log import get_logger
from libs.common.models import Failure, ImportState
from services.builder.builds import Assignment, Builds
from services.builder.definitions import Registered, register
from services.builder.ledger import DEFINITIONS_UPDATED, HolderLost, Ledger
from services.builder.orders import Order
from services.builder.settings import BuilderSettings
from services.builder.sources import Example, find_example

_MOST_TIMES_LOST = 3
_LOST = Failure(
    type="builder-lost",
    message=f"{_MOST_TIMES_LOST} builders were lost while they worked on it: something in it may take builders down, "
    "by the memory that it needs for example. See how they ended, in their logs or where they run, before you run the "
    "import again.",
)
_BROKE = Failure(
    type="internal",
    message="something went wrong on our side. The builder's own log has it under the import's id.",
)

Conclusion: TypeAlias = tuple[ImportState, Failure | None]
DATABASE_ERRORS = (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError)

_log = get_logger("builder")


def new_holder() -> str:
    """A name for this process that no other has or will have."""
    return f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}"


class Worker:
    """Works on the imports that this builder accepted or took over."""

    def __init__(self, settings: BuilderSettings, ledger: Ledger, builds: Builds, registry: RegistryClient) -> None:
        self._settings = settings
        self._ledger = ledger
        self._builds = builds
        self._registry = registry
        self._tasks: set[asyncio.Task[None]] = set()
        self._work_of: dict[str, asyncio.Task[Conclusion]] = {}
        self._waiting: dict[str, int] = {}
        self._room = asyncio.Event()
        self._room.set()
        self.stopping = False

    @property
    def holder(self) -> str:
        """Who holds what is accepted here."""
        return self._ledger.holder

    @property
    def held(self) -> list[str]:
        """The ids of the imports that are worked on here."""
        return list(self._work_of)

    async def room(self) -> None:
        """Return when a place for a build is free that no build waits for; never when nothing new is accepted."""
        await self._room.wait()

    def require_open(self) -> None:
        """Raise Unavailable when nothing new is accepted."""
        if self.stopping:
            raise Unavailable("this builder is being stopped. Try again in a moment.")

    def accept(self, order: Order) -> None:
        """Begin to work on an import that is written down with this holder; it goes on by itself."""
        work = asyncio.create_task(self._work(order))
        self._work_of[order.import_id] = work
        self._waiting[order.import_id] = len(order.waiting)
        self._note_room()
        task = asyncio.create_task(self._see_through(order, work))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        if self.stopping:
            work.cancel()

    @asynccontextmanager
    async def beating(self) -> AsyncIterator[None]:
        """Keep the imports from counting as lost while the context is open; stop them at its end."""
        async with beside(self._beat()):
            try:
                yield
            finally:
                await self.stop()

    async def stop(self) -> None:
        """Stop what is being worked on: processes are killed, workspaces removed, imports handed back."""
        self.stopping = True
        self._note_room()
        for work in self._work_of.values():
            work.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _beat(self) -> None:
        while True:
            await asyncio.sleep(self._settings.heartbeat_seconds)
            running = self.held
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

    def _note_room(self) -> None:
        if not self.stopping and sum(self._waiting.values()) < self._settings.concurrency:
            self._room.set()
        else:
            self._room.clear()

    async def _see_through(self, order: Order, work: "asyncio.Task[Conclusion]") -> None:
        """Write down how the work ended. It is the work that is cancelled, never this."""
        try:
            await self._conclude(order, work)
        except HolderLost:
            _log.warning("import_taken_away", import_id=order.import_id)
        except DATABASE_ERRORS as failure:
            # Unless its end is recorded, it gets no more heartbeats: it will count as lost, and be taken over.
            _log.error("import_not_finished", import_id=order.import_id, error=str(failure))
        finally:
            del self._work_of[order.import_id], self._waiting[order.import_id]
            self._note_room()

    async def _conclude(self, order: Order, work: "asyncio.Task[Conclusion]") -> None:
        try:
            state, error = await work
        except HolderLost:
            raise
        except asyncio.CancelledError:
            await self._ledger.hand_back(order.import_id)
            _log.info("import_handed_back", import_id=order.import_id, example=order.example)
            return
        except Exception:  # noqa: BLE001  # whatever it was, the import has ended
            _log.exception("import_broke", import_id=order.import_id)
            state, error = ImportState.FAILED, _BROKE
        await self._finish(order, state, error)

    async def _work(self, order: Order) -> Conclusion:
        if order.times_lost >= _MOST_TIMES_LOST:
            return _given_up(order, _LOST)
        await self._ledger.start_import(order.import_id)
        try:
            example = await in_thread(find_example, self._settings.examples_dir, order.example)
        except StowageError as error:  # this builder may have other examples than the one that accepted it
            return _given_up(order, Failure(type=error.kind, message=error.message))
        outcomes = await self._build(order, example)
        built = order.built + [slug for slug, succeeded in outcomes.items() if succeeded]
        failed = order.failed + [slug for slug, succeeded in outcomes.items() if not succeeded]
        registered = await self._register(order, example, built)
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

    async def _build(self, order: Order, example: Example) -> dict[str, bool]:
        """Carry out the builds that wait; whether each succeeded, by slug."""
        try:
            async with asyncio.TaskGroup() as group:
                builds = {
                    slug: group.create_task(
                        self._carry_out(
                            Assignment(build_id, order.import_id, example, order.actor, slug, order.interruption)
                        )
                    )
                    for slug, build_id in order.waiting.items()
                }
        except BaseExceptionGroup as errors:
            if errors.subgroup(HolderLost):
                raise HolderLost(order.import_id) from errors
            raise
        return {slug: task.result() for slug, task in builds.items()}

    async def _carry_out(self, assignment: Assignment) -> bool:
        try:
            return await self._builds.carry_out(assignment)
        finally:
            self._waiting[assignment.import_id] -= 1
            self._note_room()

    async def _register(self, order: Order, example: Example, built: list[str]) -> Registered:
        try:
            definitions = await in_thread(example.definitions)
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
        unfinished = await self._ledger.finish_import(order.import_id, state, error)
        _log.info(
            "import_finished",
            import_id=order.import_id,
            example=order.example,
            state=state.value,
            error=error.message if error else None,
        )
        if error is not None:
            await self._builds.close_logs(unfinished, error.message)


def _given_up(order: Order, error: Failure) -> Conclusion:
    return ImportState.PARTIALLY_FAILED if order.built else ImportState.FAILED, error


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
