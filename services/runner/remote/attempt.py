"""An attempt that an agent makes, seen from the holder of the lease: from the checks before to what it came to."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Collection, Mapping
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Any

from libs.common.journal import JournalWriter
from libs.common.version import VERSION
from services.runner.compatibility import network_of, read_runnable_manifest, require_class
from services.runner.endings import AttemptInterrupted, Outcome, RunFailed
from services.runner.executors import Attempting
from services.runner.holder import Provision
from services.runner.interrupts import Interrupts
from services.runner.lease_holder import LeaseHolder, Stock
from services.runner.lease_store import held_leases
from services.runner.remote.claims import Claim, Claims, Taken
from services.runner.remote.conversation import Account, AgentGone, Conversation, Terms
from services.runner.remote.place import Contents, Place, Placed, Placement
from services.runner.sandbox.layers import Confinement
from services.runner.settings import RunnerSettings
from services.runner.store import Assignment, Timings

_CAUSE_SECONDS = 5.0
_GRACE_SECONDS = 5.0
_LOOK_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class RemoteExecutor:
    """Makes attempts elsewhere. An agent has to take its attempt within `start_seconds`."""

    place: Place
    claims: Claims
    stock: Stock
    terms: Terms
    threads: Executor
    start_seconds: float

    def attempt(self, run: Assignment, log: JournalWriter, interrupts: Interrupts) -> Attempting:
        """An attempt at a run that was leased."""
        return RemoteAttempt(self, LeaseHolder(self.stock, run, log, interrupts))

    async def sweep(self) -> None:
        """End what runners left that are gone."""
        await self.place.sweep(self._held)

    async def _held(self, runs: Collection[str]) -> Mapping[str, str | None]:
        async with self.stock.pool.acquire() as connection:
            return await held_leases(connection, runs)


def remote_executor(
    settings: RunnerSettings, stock: Stock, threads: Executor, claims: Claims, place: Place
) -> RemoteExecutor:
    """One with these settings."""
    terms = Terms(
        settings.rules(),
        settings.sandbox,
        settings.sandbox_minimum,
        settings.max_log_bytes,
        silence_seconds=settings.lease_seconds,
    )
    return RemoteExecutor(place, claims, stock, terms, threads, settings.kubernetes_start_seconds)


class RemoteAttempt:
    """One attempt."""

    def __init__(self, executor: RemoteExecutor, holder: LeaseHolder) -> None:
        self._executor = executor
        self._holder = holder
        self._interrupts = holder.interrupts
        self._account = Account(time.monotonic())

    @property
    def timings(self) -> Timings:
        """What its phases have cost so far."""
        return self._account.timings

    @property
    def confinement(self) -> Confinement | None:
        """How its job is confined, where that is known."""
        return self._account.confinement

    @property
    def received_bytes(self) -> int:
        """What the agent has received of the bucket, once that is known."""
        return self._account.received_bytes

    @property
    def handler_called(self) -> bool:
        """Whether the handler was called. An agent that took the attempt and was not heard to the end may have."""
        account = self._account
        known = account.is_started or account.timings.start_ms is not None
        return known or (account.taken_at is not None and not account.is_final)

    async def execute(self) -> Outcome:
        """See the attempt through. Nothing of it is left when this returns or raises AttemptInterrupted."""
        try:
            return await self._execute()
        except RunFailed as error:
            return Outcome.failed(error.kind, str(error), log_tail=error.log_tail)

    async def _execute(self) -> Outcome:
        order, rules = self._holder.order, self._executor.terms.rules
        network = network_of(read_runnable_manifest(order.artifact), allowed=rules.allow_network)
        require_class(order.limits.node_class, rules.node_classes)
        limits = rules.limits_of(order.limits)
        provision = await self._holder.provide()
        inputs = [output.size for item in provision.inputs for output, _ in item.files]
        with self._executor.claims.waiting() as claim:
            placement = Placement(
                order,
                str(self._holder.run.lease),
                limits,
                order.limits.timeout_seconds or rules.timeout_seconds,
                Contents(len(inputs), sum(inputs)),
                network=network,
                token=claim.token,
            )
            async with self._executor.place.placed(placement) as placed:
                taken = await self._until_taken(claim, placed)
                if isinstance(taken, Outcome):
                    return taken
                placed.taken(taken.name)
                _require_version(taken, placed)
                self._holder.log.write("system", f"executed by the agent of {placed.told()}")
                await self._holder.require_released()  # it may have waited for long
                return await self._converse(taken, placed, provision)

    async def _until_taken(self, claim: Claim, placed: Placed) -> Taken | Outcome:
        seconds = self._executor.start_seconds
        taken = asyncio.create_task(claim.taken())
        over = asyncio.create_task(placed.over())
        wish = asyncio.create_task(self._interrupts.wait())
        async with _ended(taken, over, wish):
            await asyncio.wait((taken, over, wish), timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
            if taken.done():
                return taken.result()
            if self._interrupts.reason is not None:
                raise AttemptInterrupted
            return over.result() if over.done() else placed.not_begun(seconds)

    async def _converse(self, taken: Taken, placed: Placed, provision: Provision) -> Outcome:
        executor = self._executor
        conversation = Conversation(self._holder, executor.threads, executor.terms, taken, self._account)
        talk = asyncio.create_task(conversation.lead(provision))
        over = asyncio.create_task(placed.over())
        wish = asyncio.create_task(self._interrupts.wait())
        async with _ended(talk, over, wish):
            await asyncio.wait((talk, over, wish), return_when=asyncio.FIRST_COMPLETED)
            if not talk.done() and not self._interrupts.lost:
                await self._let_end(conversation, talk)
            if self._interrupts.lost:
                raise AttemptInterrupted
            broken = "it fell silent"
            if talk.done():
                try:
                    if (outcome := talk.result()) is not None:
                        return outcome
                    broken = "it was told to end"
                except AgentGone as error:
                    broken = str(error)
            if self._interrupts.reason is not None:
                raise AttemptInterrupted
            await asyncio.wait((over,), timeout=_CAUSE_SECONDS)
            if not over.done():
                await placed.look()
                await asyncio.wait((over,), timeout=_CAUSE_SECONDS)
            if over.done():
                return over.result()
        return Outcome.lost(f"The connection to {placed.told()} ended, and nothing says why it did: {broken}.")

    async def _let_end(self, conversation: Conversation, talk: "asyncio.Task[Any]") -> None:
        """Ask the agent to end, where that is wanted, and hear what it still says."""
        rules = self._executor.terms.rules
        if (reason := self._interrupts.reason) is not None:
            await conversation.interrupt(reason)
        await asyncio.wait((talk,), timeout=rules.abort_seconds + rules.kill_seconds + _GRACE_SECONDS)
        while conversation.is_uploading and not talk.done() and not self._interrupts.lost:
            await asyncio.wait((talk,), timeout=_LOOK_SECONDS)  # a handler has done its work: that is not thrown away


@contextlib.asynccontextmanager
async def _ended(*tasks: "asyncio.Task[Any]") -> AsyncIterator[None]:
    """When the context ends, what is not done of the tasks is cancelled."""
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _require_version(taken: Taken, placed: Placed) -> None:
    if taken.version != VERSION:
        raise RunFailed(
            "not_started",
            f"The image of {placed.told()} has Stowage {taken.version or 'of another kind'}, and the runner is "
            f"{VERSION}. Let STOWAGE_RUNNER_KUBERNETES_IMAGE be the runner's own image.",
        )
