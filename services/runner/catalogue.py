"""Reading runs, workflow runs and outputs."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from libs.common.database import Pool
from libs.common.errors import NotFound
from libs.common.object_errors import ObjectMissing
from libs.common.objects import ObjectStore
from libs.common.retention import gone
from services.runner import lease_store, output_store, store, workflow_store
from services.runner.fetching import verified
from services.runner.lease_store import AttemptRecord
from services.runner.lifecycle import no_such_run, no_such_workflow_run
from services.runner.output_store import RecordedOutput
from services.runner.store import RunFilter, RunRecord
from services.runner.workflow_store import WorkflowRunFilter
from services.runner.workflows import WorkflowRunView


@dataclass(frozen=True, slots=True)
class OpenOutput:
    """An output that is being read. The last of its chunks comes only when all have the recorded digest."""

    output: RecordedOutput
    chunks: AsyncIterator[bytes]


class Catalogue:
    """What is known of runs."""

    def __init__(self, pool: Pool, objects: ObjectStore) -> None:
        self._pool = pool
        self._objects = objects

    async def run(self, run_id: str) -> RunRecord:
        """A run, or NotFound."""
        async with self._pool.acquire() as connection:
            record = await store.get_run(connection, run_id)
        if record is None:
            raise no_such_run(run_id)
        return record

    async def runs(self, wanted: RunFilter, *, before: str | None, limit: int) -> list[RunRecord]:
        """Runs, newest first."""
        async with self._pool.acquire() as connection:
            return await store.list_runs(connection, wanted, before=before, limit=limit)

    async def attempts(self, run_id: str, *, after: int, limit: int) -> list[AttemptRecord]:
        """The attempts at a run; NotFound where there is no such run."""
        await self.run(run_id)
        async with self._pool.acquire() as connection:
            return await lease_store.list_attempts(connection, run_id, after=after, limit=limit)

    async def outputs(self, run_id: str, *, after: str | None, limit: int) -> list[RecordedOutput]:
        """Outputs of a run by path; NotFound where there is no such run."""
        await self.run(run_id)
        async with self._pool.acquire() as connection:
            return await output_store.list_outputs(connection, run_id, after=after, limit=limit)

    async def output(self, run_id: str, path: str) -> RecordedOutput:
        """What is known of an output that can be read; NotFound, or Gone where it has expired."""
        run = await self.run(run_id)
        async with self._pool.acquire() as connection:
            found = await output_store.get_output(connection, run_id, path)
        if found is None:
            raise NotFound(f"run {run_id} has no output {path[:200]}. GET /runs/{run_id}/outputs lists what it has.")
        if run.expired_at is not None:
            raise gone(f"the output {found.path} of run {run_id}", run.expired_at)
        return found

    @asynccontextmanager
    async def open_output(self, output: RecordedOutput) -> AsyncIterator[OpenOutput]:
        """Read an output, or NotFound where the bucket has lost it."""
        try:
            body = await asyncio.to_thread(self._objects.read, output.object_key)
        except ObjectMissing as error:
            raise NotFound(
                f"the output {output.path} was recorded, but its object is gone from the bucket. Run it again.",
                kind="output-missing",
            ) from error

        async def chunks() -> AsyncIterator[bytes]:
            pieces = verified(body, output)
            while piece := await asyncio.to_thread(next, pieces, None):
                yield piece

        try:
            yield OpenOutput(output, chunks())
        finally:
            await asyncio.to_thread(body.close)

    async def workflow_run(self, workflow_run_id: str) -> WorkflowRunView:
        """A workflow run, or NotFound."""
        async with self._pool.acquire() as connection:
            run = await workflow_store.get_workflow_run(connection, workflow_run_id)
            if run is None:
                raise no_such_workflow_run(workflow_run_id)
            return WorkflowRunView(run, await workflow_store.list_steps(connection, [run.id]))

    async def workflow_runs(
        self, wanted: WorkflowRunFilter, *, before: str | None, limit: int
    ) -> list[WorkflowRunView]:
        """Workflow runs, newest first."""
        async with self._pool.acquire() as connection:
            runs = await workflow_store.list_workflow_runs(connection, wanted, before=before, limit=limit)
            steps = await workflow_store.list_steps(connection, [run.id for run in runs])
        return [WorkflowRunView(run, [step for step in steps if step.workflow_run_id == run.id]) for run in runs]
