"""What a workflow run does next: decided in the database transaction that ended one of its runs, or that began it."""

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from libs.common import audit
from libs.common.audit import Origin
from libs.common.database import Connection
from libs.common.errors import StowageError
from libs.common.models import (
    InputSource,
    JobDefinition,
    Resolution,
    StepDefinition,
    StepState,
    WorkflowRunState,
)
from services.runner.acceptance import Template, check_parameters, queue_run
from services.runner.store import NewRun
from services.runner.templates import TemplateError, render
from services.runner.workflow_store import (
    StepRecord,
    WorkflowRunRecord,
    finish_workflow_run,
    list_steps,
    lock_workflow_run,
    set_step,
)

_OPEN = {StepState.WAITING, StepState.QUEUED, StepState.RUNNING}


async def advance(connection: Connection, workflow_run_id: str, *, max_parameters_bytes: int) -> set[str]:
    """Start each step that has become ready, skip each that never will, and finish the workflow run with its last.

    Asks nobody but the database. The transaction holds the lock on the workflow run from here on. Returns the scopes in
    which there are turns to be given when it has committed.
    """
    scopes: set[str] = set()
    run = await lock_workflow_run(connection, workflow_run_id)
    if run is None or run.state is not WorkflowRunState.RUNNING:
        return scopes
    origin = Origin(run.created_by, run.request_id)
    steps = {step.name: step for step in await list_steps(connection, [workflow_run_id])}
    # In rounds: a step that can't be started decides about those behind it.
    while decided := _decide(steps):
        for name, ready in decided.items():
            state, run_id, error = StepState.SKIPPED, None, None
            if ready:
                new = _new_run(run, steps, steps[name], origin, max_parameters_bytes)
                if isinstance(new, NewRun):
                    state, run_id = StepState.QUEUED, new.id
                    await queue_run(connection, new, origin)
                    if new.turn_scope is not None:
                        scopes.add(new.turn_scope)
                else:
                    state, error = StepState.FAILED, new
            await set_step(connection, workflow_run_id, name, state, run_id=run_id, error=error)
            steps[name] = replace(steps[name], state=state, run_id=run_id, error=error)
    if not any(step.state in _OPEN for step in steps.values()):
        await _finish(connection, run, steps, origin)
    return scopes


def _decide(steps: Mapping[str, StepRecord]) -> dict[str, bool]:
    """The waiting steps that need not wait any longer, and whether they can be started."""
    decided = {}
    for step in steps.values():
        if step.state is StepState.WAITING:
            definition = StepDefinition.model_validate(step.definition)
            needed = [steps[name].state for name in definition.depends_on]
            if all(state is StepState.SUCCEEDED for state in needed):
                decided[step.name] = True
            elif any(state is not StepState.SUCCEEDED and state not in _OPEN for state in needed):
                decided[step.name] = False
    return decided


def _new_run(
    run: WorkflowRunRecord,
    steps: Mapping[str, StepRecord],
    step: StepRecord,
    origin: Origin,
    max_parameters_bytes: int,
) -> NewRun | dict[str, Any]:
    """The run that executes a step, or why there can't be one."""
    definition = StepDefinition.model_validate(step.definition)
    scope = {
        "parameters": run.parameters,
        "steps": {
            other.name: {"result": other.result} for other in steps.values() if other.state is StepState.SUCCEEDED
        },
    }
    template = Template(
        Resolution.model_validate(step.resolution), definition.job, JobDefinition.model_validate(step.job)
    )
    try:
        parameters = render(definition.parameters, scope)
        inputs = _render_inputs(definition.inputs, steps, scope)
        new = template.run(parameters, inputs, origin)
        check_parameters(new.parameters, max_parameters_bytes)
    except TemplateError as error:
        return {"type": "template", "message": str(error)}
    except StowageError as error:
        return {"type": error.kind, "message": error.message}
    return replace(new, workflow_run_id=run.id, step=step.name)


def _render_inputs(
    inputs: Mapping[str, InputSource], steps: Mapping[str, StepRecord], scope: Mapping[str, Any]
) -> dict[str, InputSource]:
    rendered = {}
    for name, source in inputs.items():
        run_id = steps[source.step].run_id if source.step is not None else render(source.run, scope)
        if run_id is None and source.optional:
            continue
        if not isinstance(run_id, str) or not run_id:
            raise TemplateError(
                f"input {name} names no run: {source.run} is {json.dumps(run_id)[:100]}. Give the id of a run."
            )
        path = render(source.path, scope)
        if not isinstance(path, str) or not path:
            raise TemplateError(f"input {name} names no path: {source.path} is {json.dumps(path)[:100]}.")
        rendered[name] = InputSource(run=run_id, path=path, optional=source.optional)
    return rendered


async def _finish(
    connection: Connection, run: WorkflowRunRecord, steps: Mapping[str, StepRecord], origin: Origin
) -> None:
    states = {step.state for step in steps.values()}
    if states == {StepState.SUCCEEDED}:
        state = WorkflowRunState.SUCCEEDED
    elif StepState.CANCELLED in states:
        state = WorkflowRunState.CANCELLED
    else:
        state = WorkflowRunState.FAILED
    await finish_workflow_run(connection, run.id, state)
    event = audit.Event(
        "workflow_run.finished", f"workflow-run/{run.id}", detail={"workflow": run.workflow, "state": state.value}
    )
    await audit.append(connection, origin, event)
