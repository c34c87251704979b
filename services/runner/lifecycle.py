"""The transitions of a run, each one transaction: leased, given back, cancelled, finished.

A run is finished once: by the attempt that holds its lease, or by a cancel while nobody does.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from uuid import UUID

from libs.common import audit
from libs.common.audit import Origin
from libs.common.database import Connection, Pool
from libs.common.errors import Conflict, NotFound
from libs.common.journal import Journal
from libs.common.models import Output, RetryOn, RetryPolicy, RunState, StepState, WorkflowRunState
from libs.common.queue import remove_entry
from services.runner import lease_store, output_store, store, workflow_store
from services.runner.advance import advance
from services.runner.endings import Outcome
from services.runner.store import Assignment, Ending, LockedRun
from services.runner.turns import Turns

_CANCELLED = "The run was cancelled before it started."
_CANCELLED_BETWEEN = "The run was cancelled while it waited for another attempt."
_STEP_STATES = {RunState.SUCCEEDED: StepState.SUCCEEDED, RunState.CANCELLED: StepState.CANCELLED}


class Verdict(Enum):
    """What is to be done with a run that was leased."""

    EXECUTE = auto()
    CANCEL = auto()  # somebody asked for it while its runner was lost
    GIVE_UP = auto()  # its runner was lost, and the job says that it is not tried again after that


@dataclass(frozen=True, slots=True)
class Leased:
    """A run that is ours for now."""

    assignment: Assignment
    verdict: Verdict


@dataclass(frozen=True, slots=True)
class NotYet:
    """A run that waits for its next attempt, and for how long still."""

    seconds: float


class Lifecycle:
    """Moves runs from state to state. `on_finished` hears of each end, once it is recorded.

    `runner` is what the attempts made here are told by.
    """

    def __init__(
        self,
        pool: Pool,
        journal: Journal,
        turns: Turns,
        on_finished: Callable[[RunState], None],
        *,
        runner: str,
        max_parameters_bytes: int,
    ) -> None:
        self._pool = pool
        self._journal = journal
        self._turns = turns
        self._on_finished = on_finished
        self._runner = runner
        self._max_parameters_bytes = max_parameters_bytes

    async def lease(self, run_id: str, token: UUID) -> Leased | NotYet | None:
        """Take a run over from the queue, or from a runner that was lost. None where there is nothing left to do.

        NotYet where the run waits for another attempt, and its entry came back before that.

        `token` is the new lease; to ask again with the same one, since the answer was lost, begins no second attempt.
        Whoever held the lease before can write nothing more.
        """
        async with self._pool.acquire() as connection, connection.transaction():
            run = await store.lock_run(connection, run_id)
            if run is None or run.state.final:
                await remove_entry(connection, run_id)
                return None
            if run.wait_seconds > 0:
                return NotYet(run.wait_seconds)
            verdict = _judge(run, token)
            begins = verdict is Verdict.EXECUTE and (run.lease != token or run.state is RunState.QUEUED)
            assignment = await lease_store.lease_run(
                connection,
                run_id,
                token,
                state=RunState.STARTING if verdict is Verdict.EXECUTE else RunState.QUEUED,
                attempts=run.attempts + begins,
                runner=self._runner,
            )
            await self._step_is(connection, run.workflow_run_id, run_id, StepState.RUNNING)
            if run.lease is not None:
                await store.notify_holder(connection, run_id)
        return Leased(assignment, verdict)

    async def try_again(self, run: Assignment, outcome: Outcome, *, after_seconds: float) -> bool:
        """Queue a run again after an attempt that did not succeed.

        False where the lease was lost, or somebody wants the run to end. It may be asked for again when the answer was
        lost.
        """
        error = outcome.error.model_dump(mode="json", by_alias=True) if outcome.error else {}
        async with self._pool.acquire() as connection, connection.transaction():
            if not await lease_store.try_again(connection, run, outcome.state, error, after_seconds=after_seconds):
                return False
            await self._step_is(connection, run.workflow_run_id, run.id, StepState.QUEUED)
        return True

    async def hand_back(self, assignment: Assignment) -> None:
        """Queue a run again that this runner has to leave."""
        async with self._pool.acquire() as connection, connection.transaction():
            if await lease_store.hand_back(connection, assignment.id, assignment.lease):
                await self._step_is(connection, assignment.workflow_run_id, assignment.id, StepState.QUEUED)

    async def finish(self, assignment: Assignment, ending: Ending, outputs: Sequence[Output]) -> bool:
        """Record the end of a run, its outputs, and what follows from it. False where the lease was lost.

        It may be asked for again when the answer was lost.
        """
        run_id = assignment.id
        async with self._pool.acquire() as connection, connection.transaction():
            if assignment.workflow_run_id is not None:
                await workflow_store.lock_workflow_run(connection, assignment.workflow_run_id)
            if not await lease_store.finish_run(connection, run_id, assignment.lease, ending):
                return await lease_store.finished_by(connection, run_id, assignment.lease)
            await remove_entry(connection, run_id)
            await output_store.insert_outputs(connection, run_id, assignment.attempts, outputs)
            origin = Origin(assignment.created_by, assignment.request_id)
            detail = {
                "state": ending.state.value,
                "attempts": assignment.attempts,
                **({"error": ending.error["type"]} if ending.error else {}),
            }
            event = audit.Event("run.finished", f"run/{run_id}", digest=assignment.digest, detail=detail)
            await audit.append(connection, origin, event)
            if ending.log_key is not None:
                await self._journal.discard(connection, run_id)
            else:
                await self._journal.wake(connection, run_id)
            scopes = await self._step_ended(connection, assignment.workflow_run_id, run_id, ending.state)
        await self._turns.give(scopes | _scope_of(assignment))
        self._on_finished(ending.state)
        return True

    async def cancel(self, run_id: str, origin: Origin) -> None:
        """End a run: at once when it is queued, else its runner is asked to. Conflict when it has ended otherwise."""
        async with self._pool.acquire() as connection, connection.transaction():
            known = await store.get_run(connection, run_id)
            if known is None:
                raise no_such_run(run_id)
            if known.workflow_run_id is not None:
                await workflow_store.lock_workflow_run(connection, known.workflow_run_id)
            run = await store.lock_run(connection, run_id)
            if run is None or run.state is RunState.CANCELLED:
                return
            if run.state.final:
                raise Conflict(f"run {run_id} has already ended: it is {run.state.value}.", state=run.state.value)
            ended = await self._cancel_locked(connection, run_id, run, origin)
            scopes = _scope_of(run)
            if ended and run.workflow_run_id is not None:
                scopes |= await self._advance(connection, run.workflow_run_id)
        if ended:
            await self._turns.give(scopes)
            self._on_finished(RunState.CANCELLED)

    async def cancel_workflow_run(self, workflow_run_id: str, origin: Origin) -> None:
        """Start no more steps, and end those that have begun."""
        async with self._pool.acquire() as connection, connection.transaction():
            workflow_run = await workflow_store.lock_workflow_run(connection, workflow_run_id)
            if workflow_run is None:
                raise no_such_workflow_run(workflow_run_id)
            if workflow_run.state is WorkflowRunState.CANCELLED:
                return
            if workflow_run.state is not WorkflowRunState.RUNNING:
                state = workflow_run.state.value
                raise Conflict(f"workflow run {workflow_run_id} has already ended: it is {state}.", state=state)
            await audit.append(
                connection, origin, audit.Event("workflow_run.cancel_requested", f"workflow-run/{workflow_run_id}")
            )
            await workflow_store.cancel_waiting_steps(connection, workflow_run_id)
            ended, scopes = 0, set[str]()
            for step in await workflow_store.list_steps(connection, [workflow_run_id]):
                if step.run_id is not None and (run := await store.lock_run(connection, step.run_id)):
                    ended += await self._cancel_locked(connection, step.run_id, run, origin)
                    scopes |= _scope_of(run)
            scopes |= await self._advance(connection, workflow_run_id)
        await self._turns.give(scopes)
        for _ in range(ended):
            self._on_finished(RunState.CANCELLED)

    async def _cancel_locked(self, connection: Connection, run_id: str, run: LockedRun, origin: Origin) -> bool:
        """Cancel a locked run; whether it has ended by that."""
        if run.state.final or run.cancel_requested:
            return False
        await audit.append(connection, origin, audit.Event("run.cancel_requested", f"run/{run_id}"))
        if run.state is not RunState.QUEUED:
            await store.request_cancel(connection, run_id)
            await store.notify_holder(connection, run_id)
            return False
        message = _CANCELLED_BETWEEN if run.attempts else _CANCELLED
        await store.cancel_queued_run(connection, run_id, {"type": "cancelled", "message": message})
        await remove_entry(connection, run_id)
        event = audit.Event(
            "run.finished", f"run/{run_id}", detail={"state": RunState.CANCELLED.value, "attempts": run.attempts}
        )
        await audit.append(connection, origin, event)
        await self._step_is(connection, run.workflow_run_id, run_id, StepState.CANCELLED)
        await self._journal.wake(connection, run_id)
        return True

    async def _step_ended(
        self, connection: Connection, workflow_run_id: str | None, run_id: str, state: RunState
    ) -> set[str]:
        if workflow_run_id is None:
            return set()
        await self._step_is(connection, workflow_run_id, run_id, _STEP_STATES.get(state, StepState.FAILED))
        return await self._advance(connection, workflow_run_id)

    async def _advance(self, connection: Connection, workflow_run_id: str) -> set[str]:
        return await advance(connection, workflow_run_id, max_parameters_bytes=self._max_parameters_bytes)

    @staticmethod
    async def _step_is(connection: Connection, workflow_run_id: str | None, run_id: str, state: StepState) -> None:
        if workflow_run_id is not None:
            await workflow_store.set_step_of_run(connection, workflow_run_id, run_id, state)


def _judge(run: LockedRun, token: UUID) -> Verdict:
    if run.cancel_requested:
        return Verdict.CANCEL
    if run.state is RunState.QUEUED:
        return Verdict.EXECUTE if run.attempts < run.max_attempts else Verdict.GIVE_UP
    if run.lease == token:
        return Verdict.EXECUTE  # asked for again
    tried_again = RetryOn.LOST in RetryPolicy.model_validate(run.retry).on and run.attempts < run.max_attempts
    return Verdict.EXECUTE if tried_again else Verdict.GIVE_UP


def _scope_of(run: Assignment | LockedRun) -> set[str]:
    """Where another run may have its turn when this one has ended."""
    return set() if run.turn_scope is None else {run.turn_scope}


def no_such_run(run_id: str) -> NotFound:
    """No run has this id."""
    return NotFound(f"there is no run {run_id[:100]}.")


def no_such_workflow_run(workflow_run_id: str) -> NotFound:
    """No workflow run has this id."""
    return NotFound(f"there is no workflow run {workflow_run_id[:100]}.")
