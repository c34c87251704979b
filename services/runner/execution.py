"""A leased run, seen through: from the lease to the one transaction that ends it."""

import asyncio
from contextlib import AbstractAsyncContextManager
from datetime import datetime
from uuid import uuid4

from libs.common.journal import Journal, JournalLimits, JournalWriter
from libs.common.log import get_logger
from libs.common.models import RetryPolicy, RunState
from services.runner.endings import AttemptInterrupted, Outcome
from services.runner.executors import Attempting, Executor
from services.runner.interrupts import Interrupt, Interrupts, Watch
from services.runner.lifecycle import Leased, Lifecycle, NotYet, Verdict
from services.runner.logs import RunLogs
from services.runner.metrics import RunMetrics
from services.runner.persistence import persistently
from services.runner.retries import may_be_left, seconds_to_next_attempt
from services.runner.sandbox.layers import Confinement
from services.runner.store import Assignment, Ending, Timings
from services.runner.uploads import Uploads
from services.runner.worker import Stopping

_STOPPED = (
    "The runner had to stop while the handler was at work, and the job is not tried again after that. Give runners "
    "more time to drain, STOWAGE_RUNNER_DRAIN_SECONDS, or let the job be tried again after “lost”."
)
_log = get_logger("runner")


class Execution:
    """Executes runs for the worker."""

    def __init__(
        self,
        executor: Executor,
        uploads: Uploads,
        lifecycle: Lifecycle,
        journal: Journal,
        logs: RunLogs,
        watch: Watch,
        stopping: Stopping,
        metrics: RunMetrics,
        *,
        max_log_bytes: int,
    ) -> None:
        self._executor = executor
        self._uploads = uploads
        self._lifecycle = lifecycle
        self._journal = journal
        self._logs = logs
        self._watch = watch
        self._stopping = stopping
        self._metrics = metrics
        self._limits = JournalLimits(max_bytes=max_log_bytes)

    async def execute(self, run_id: str) -> float | None:
        """Take a run from the queue to its end; or the seconds after which it is to be leased again."""
        async with self._watch.news(run_id) as news:
            return await self._execute(run_id, news)

    async def _execute(self, run_id: str, news: asyncio.Event) -> float | None:
        token = uuid4()
        leased = await persistently(lambda: self._lifecycle.lease(run_id, token), what="lease", run_id=run_id)
        if leased is None:
            return None
        if isinstance(leased, NotYet):
            return leased.seconds
        run = leased.assignment
        async with self._watch.over(run_id, run.lease, news, self._stopping.leaving) as interrupts:
            is_new = leased.verdict is Verdict.EXECUTE and run.attempts == 1
            new_at = run.leased_at if is_new else None
            writing, log = await persistently(lambda: self._open_log(run, new_at=new_at), what="log", run_id=run_id)
            try:
                with self._metrics.executing():
                    return await self._see_through(leased, log, interrupts)
            except Exception:
                log.write("system", "the attempt broke off through a fault of the runner", level="error")
                raise
            finally:
                if interrupts.lost:
                    log.discard()
                await persistently(log.flush, what="log", run_id=run_id)
                await writing.__aexit__(None, None, None)

    async def _open_log(
        self, run: Assignment, *, new_at: datetime | None
    ) -> tuple[AbstractAsyncContextManager[JournalWriter], JournalWriter]:
        writing = self._journal.writing(run.id, self._limits, holder=run.lease, new_at=new_at)
        return writing, await writing.__aenter__()

    async def _see_through(self, leased: Leased, log: JournalWriter, interrupts: Interrupts) -> float | None:
        run = leased.assignment
        timings, confinement = Timings(), None
        match leased.verdict:
            case Verdict.EXECUTE:
                bundle = f"{run.slug}@{run.version} r{run.revision} {run.digest}"
                log.write("system", f"attempt {run.attempts} of {run.max_attempts}: {bundle}")
                attempt = self._executor.attempt(run, log, interrupts)
                try:
                    outcome = await attempt.execute()
                except AttemptInterrupted:
                    if interrupts.reason is Interrupt.CANCEL:
                        outcome = Outcome.failed("cancelled", "The run was cancelled.", state=RunState.CANCELLED)
                    elif interrupts.lost or may_be_left(
                        RetryPolicy.model_validate(run.retry), handler_called=attempt.handler_called
                    ):
                        return await self._leave(run, log, interrupts)
                    else:
                        outcome = Outcome.failed("lost", _STOPPED, state=RunState.LOST)
                finally:
                    self._metrics.attempted(run, attempt.timings, attempt.received_bytes)
                timings, confinement = attempt.timings, attempt.confinement
                if (seconds := await self._try_again(run, outcome, attempt, log)) is not None:
                    return seconds
            case Verdict.CANCEL:
                outcome = Outcome.failed("cancelled", "The run was cancelled.", state=RunState.CANCELLED)
            case Verdict.GIVE_UP:
                outcome = Outcome.failed(
                    "lost",
                    f"The runner that made attempt {run.attempts} of {run.max_attempts} was lost, and the job is not "
                    "tried again after that. See in the log how far it came, and whether the job takes the machine "
                    "down with it.",
                    state=RunState.LOST,
                )
        await self._finish(leased, outcome, timings, confinement, log)
        return None

    async def _try_again(
        self, run: Assignment, outcome: Outcome, attempt: Attempting, log: JournalWriter
    ) -> float | None:
        """Queue a run again whose job says so after such an attempt; the seconds until the next one."""
        seconds = seconds_to_next_attempt(
            RetryPolicy.model_validate(run.retry),
            outcome,
            attempt=run.attempts,
            max_attempts=run.max_attempts,
            handler_called=attempt.handler_called,
        )
        if seconds is None or outcome.error is None:
            return None
        log.write(
            "system",
            f"attempt {run.attempts} of {run.max_attempts} {outcome.state.value}: {outcome.error.type}: "
            f"{outcome.error.message} The next one begins in {seconds:.1f} seconds.",
            level="warning",
        )
        await persistently(log.flush, what="log", run_id=run.id)  # the next holder writes behind it
        queued = await persistently(
            lambda: self._lifecycle.try_again(run, outcome, after_seconds=seconds), what="try_again", run_id=run.id
        )
        if not queued:
            return None
        _log.info("run_queued_again", run=run.id, attempt=run.attempts, error=outcome.error.type, seconds=seconds)
        return seconds

    async def _leave(self, run: Assignment, log: JournalWriter, interrupts: Interrupts) -> float | None:
        """Let go of a run that is not at its end; the seconds after which it is to be leased again, if that is ours."""
        if interrupts.lost:
            self._metrics.lease_lost()
            _log.warning("lease_lost", run=run.id, attempt=run.attempts)
            return None
        log.write("system", "the runner stops; the run is queued again")
        await persistently(log.flush, what="log", run_id=run.id)  # the next holder writes behind it
        await persistently(lambda: self._lifecycle.hand_back(run), what="hand_back", run_id=run.id)
        _log.info("run_handed_back", run=run.id, attempt=run.attempts)
        return 0.0

    async def _finish(
        self, leased: Leased, outcome: Outcome, timings: Timings, confinement: Confinement | None, log: JournalWriter
    ) -> None:
        run, error = leased.assignment, outcome.error
        log.write(
            "system",
            f"{outcome.state.value}: {error.message}" if error else outcome.state.value,
            level="info" if outcome.state is RunState.SUCCEEDED else "error",
        )
        log_key = await persistently(lambda: self._logs.archive_written(run, log), what="log", run_id=run.id)
        ending = Ending(
            outcome.state,
            outcome.result,
            error.model_dump(mode="json", by_alias=True) if error else None,
            timings,
            log_key,
            confinement.as_record() if confinement else None,
        )
        finished = await persistently(
            lambda: self._lifecycle.finish(run, ending, outcome.outputs), what="finish", run_id=run.id
        )
        if not finished:
            self._metrics.lease_lost()
            await self._uploads.discard(run)
            await self._logs.discard(run.id, lambda key: key == log_key)
        elif run.attempts > 1 or leased.verdict is not Verdict.EXECUTE:
            await self._logs.discard(run.id, lambda key: key != log_key)
        _log.info(
            "run_finished" if finished else "lease_lost",
            run=run.id,
            bundle=f"{run.slug}@{run.version}",
            digest=run.digest,
            state=outcome.state.value,
            attempt=run.attempts,
            error=error.type if error else None,
        )
