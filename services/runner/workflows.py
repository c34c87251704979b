"""Workflow runs: accepted with every step pinned, then advanced whenever one of their runs ends."""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from libs.common import audit
from libs.common.audit import Origin
from libs.common.auth import Principal, Scope
from libs.common.client import RegistryClient
from libs.common.database import Pool
from libs.common.errors import InvalidRequest, Unprocessable
from libs.common.idempotency import Conclude, nothing
from libs.common.identifiers import new_id
from libs.common.models import JobDefinition, Resolution, StepDefinition, WorkflowDefinition
from services.runner.acceptance import check_input_name, check_parameters, require_inputs_readable
from services.runner.advance import advance
from services.runner.references import find_job, find_workflow, resolve_bundle
from services.runner.standing import Standing
from services.runner.turns import Backlog, Turns
from services.runner.workflow_store import (
    NewStep,
    StepRecord,
    WorkflowRunRecord,
    get_workflow_run,
    insert_workflow_run,
    list_steps,
)

_PARALLEL_LOOKUPS = 8


@dataclass(frozen=True, slots=True)
class WorkflowRunView:
    """A workflow run with its steps."""

    run: WorkflowRunRecord
    steps: list[StepRecord]


class WorkflowAcceptance:
    """Takes requests for workflow runs."""

    def __init__(
        self,
        pool: Pool,
        registry: RegistryClient,
        standing: Standing,
        turns: Turns,
        backlog: Backlog,
        *,
        max_parameters_bytes: int,
    ) -> None:
        self._pool = pool
        self._registry = registry
        self._standing = standing
        self._turns = turns
        self._backlog = backlog
        self._max_parameters_bytes = max_parameters_bytes

    async def accept(
        self,
        slug: str,
        parameters: Mapping[str, Any],
        principal: Principal,
        origin: Origin,
        *,
        conclude: Conclude[WorkflowRunView] = nothing,
    ) -> WorkflowRunView:
        """Start a workflow. All that its steps will execute is pinned now. TooManyRequests when the queue is full.

        Forbidden unless the principal may run the job of each step and the bundle that it comes to, and read the runs
        that inputs are from.
        """
        await self._backlog.require_room()
        workflow = await find_workflow(self._registry, slug)
        _require_steps(workflow.definition, principal)
        _check_inputs(workflow.definition)
        merged = {**workflow.definition.parameters, **parameters}
        check_parameters(merged, self._max_parameters_bytes)
        steps = await self._pin(workflow.definition.steps, principal)
        identifier = new_id("wfr")
        async with self._pool.acquire() as connection, connection.transaction():
            await insert_workflow_run(
                connection, identifier, slug, merged, steps, created_by=origin.actor, request_id=origin.request_id
            )
            event = audit.Event(
                "workflow_run.accepted",
                f"workflow-run/{identifier}",
                detail={"workflow": slug, "revision": workflow.revision},
            )
            await audit.append(connection, origin, event)
            scopes = await advance(connection, identifier, max_parameters_bytes=self._max_parameters_bytes)
            run = await get_workflow_run(connection, identifier)
            if run is None:
                raise LookupError(identifier)
            view = WorkflowRunView(run, await list_steps(connection, [identifier]))
            await conclude(connection, view)
        await self._turns.give(scopes)
        return view

    async def _pin(self, steps: Sequence[StepDefinition], principal: Principal) -> list[NewStep]:
        """What each step's job and its bundle mean right now; each is asked for once."""
        limit = asyncio.Semaphore(_PARALLEL_LOOKUPS)

        async def job(slug: str) -> JobDefinition:
            async with limit:
                return (await find_job(self._registry, slug)).definition

        async def resolution(wanted: tuple[str, bool]) -> Resolution:
            async with limit:
                return await resolve_bundle(self._standing, wanted[0], principal, allow_yanked=wanted[1])

        slugs = sorted({step.job for step in steps})
        jobs = dict(zip(slugs, await asyncio.gather(*map(job, slugs)), strict=True))
        wanted = {slug: (definition.bundle, definition.allow_yanked) for slug, definition in jobs.items()}
        distinct = sorted(set(wanted.values()))
        resolutions = dict(zip(distinct, await asyncio.gather(*map(resolution, distinct)), strict=True))
        return [
            NewStep(
                step.name,
                step.model_dump(by_alias=True),
                jobs[step.job].model_dump(by_alias=True),
                resolutions[wanted[step.job]].model_dump(mode="json", by_alias=True),
            )
            for step in steps
        ]


def _require_steps(definition: WorkflowDefinition, principal: Principal) -> None:
    """What `POST /runs` requires for a job and its inputs, for each step: a workflow is no way around that."""
    for step in definition.steps:
        principal.require(Scope.RUNS_WRITE, step.job)
        require_inputs_readable(step.inputs.values(), principal)


def _check_inputs(definition: WorkflowDefinition) -> None:
    """Raise Unprocessable unless every input can be a file. That the steps make a graph, the registry has seen to."""
    for step in definition.steps:
        for name in step.inputs:
            try:
                check_input_name(name)
            except InvalidRequest as error:
                raise Unprocessable(f"step {step.name}: {error.message}") from None
