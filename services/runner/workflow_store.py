"""Workflow runs and their steps in PostgreSQL.

Locks are taken in one order everywhere: the workflow run, then its runs, then its steps.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from libs.common.database import Connection
from libs.common.models import StepState, WorkflowRunState


@dataclass(frozen=True, slots=True)
class WorkflowRunRecord:
    """A workflow run."""

    id: str
    workflow: str
    state: WorkflowRunState
    parameters: dict[str, Any]
    created_at: datetime
    created_by: str
    request_id: str | None
    finished_at: datetime | None


@dataclass(frozen=True, slots=True)
class NewStep:
    """A step of a workflow run that is to be: everything as it was when the workflow run was accepted."""

    name: str
    definition: dict[str, Any]
    job: dict[str, Any]
    resolution: dict[str, Any]


@dataclass(frozen=True, slots=True)
class StepRecord:
    """A step, and what is known of its run."""

    workflow_run_id: str
    name: str
    definition: dict[str, Any]
    job: dict[str, Any]
    resolution: dict[str, Any]
    state: StepState
    run_id: str | None
    result: Any
    error: dict[str, Any] | None


@dataclass(frozen=True, slots=True)
class WorkflowRunFilter:
    """Which workflow runs to list."""

    workflow: str | None = None
    state: WorkflowRunState | None = None


_INSERT = """
    INSERT INTO runner.workflow_runs (id, workflow, parameters, created_by, request_id) VALUES ($1, $2, $3, $4, $5)
"""

_INSERT_STEP = """
    INSERT INTO runner.workflow_steps (workflow_run_id, position, name, definition, job, resolution)
    VALUES ($1, $2, $3, $4, $5, $6)
"""


async def insert_workflow_run(
    connection: Connection,
    workflow_run_id: str,
    workflow: str,
    parameters: dict[str, Any],
    steps: Sequence[NewStep],
    *,
    created_by: str,
    request_id: str | None,
) -> None:
    """Insert a workflow run whose steps all wait."""
    await connection.execute(_INSERT, workflow_run_id, workflow, parameters, created_by, request_id)
    await connection.executemany(
        _INSERT_STEP,
        [
            (workflow_run_id, position, step.name, step.definition, step.job, step.resolution)
            for position, step in enumerate(steps)
        ],
    )


_COLUMNS = "id, workflow, state, parameters, created_at, created_by, request_id, finished_at"
_GET = f"SELECT {_COLUMNS} FROM runner.workflow_runs WHERE id = $1"  # noqa: S608  # a constant
_LOCK = f"{_GET} FOR UPDATE"
_LIST = f"""
    SELECT {_COLUMNS}
    FROM runner.workflow_runs
    WHERE ($1::text IS NULL OR workflow = $1)
      AND ($2::runner.workflow_run_state IS NULL OR state = $2)
      AND ($3::text IS NULL OR id < $3)
    ORDER BY id DESC
    LIMIT $4
"""  # noqa: S608  # constants


async def get_workflow_run(connection: Connection, workflow_run_id: str) -> WorkflowRunRecord | None:
    """A workflow run, or None."""
    row = await connection.fetchrow(_GET, workflow_run_id)
    return _record(row) if row else None


async def lock_workflow_run(connection: Connection, workflow_run_id: str) -> WorkflowRunRecord | None:
    """A workflow run, locked until the transaction ends."""
    row = await connection.fetchrow(_LOCK, workflow_run_id)
    return _record(row) if row else None


async def list_workflow_runs(
    connection: Connection, wanted: WorkflowRunFilter, *, before: str | None, limit: int
) -> list[WorkflowRunRecord]:
    """Workflow runs, newest first, whose ids come before `before`."""
    rows = await connection.fetch(_LIST, wanted.workflow, wanted.state, before, limit)
    return [_record(row) for row in rows]


_STEPS = """
    SELECT steps.workflow_run_id, steps.name, steps.definition, steps.job, steps.resolution, steps.state, steps.run_id,
           runs.result, coalesce(steps.error, runs.error) AS error
    FROM runner.workflow_steps AS steps
    LEFT JOIN runner.runs ON runs.id = steps.run_id
    WHERE steps.workflow_run_id = ANY($1)
    ORDER BY steps.workflow_run_id, steps.position
"""


async def list_steps(connection: Connection, workflow_run_ids: Sequence[str]) -> list[StepRecord]:
    """The steps of these workflow runs, in the order of their definitions."""
    rows = await connection.fetch(_STEPS, list(workflow_run_ids))
    return [StepRecord(**{**dict(row), "state": StepState(row["state"])}) for row in rows]


_SET_STEP_OF_RUN = "UPDATE runner.workflow_steps SET state = $3 WHERE workflow_run_id = $1 AND run_id = $2"

_SET_STEP = """
    UPDATE runner.workflow_steps SET state = $3, run_id = $4, error = $5 WHERE workflow_run_id = $1 AND name = $2
"""

_CANCEL_WAITING = """
    UPDATE runner.workflow_steps SET state = 'cancelled' WHERE workflow_run_id = $1 AND state = 'waiting'
"""

_FINISH = """
    UPDATE runner.workflow_runs SET state = $2, finished_at = now() WHERE id = $1 AND state = 'running'
"""


async def set_step_of_run(connection: Connection, workflow_run_id: str, run_id: str, state: StepState) -> None:
    """How far the step is that `run_id` executes."""
    await connection.execute(_SET_STEP_OF_RUN, workflow_run_id, run_id, state)


async def set_step(
    connection: Connection,
    workflow_run_id: str,
    name: str,
    state: StepState,
    *,
    run_id: str | None = None,
    error: dict[str, Any] | None = None,
) -> None:
    """Decide what becomes of a waiting step."""
    await connection.execute(_SET_STEP, workflow_run_id, name, state, run_id, error)


async def cancel_waiting_steps(connection: Connection, workflow_run_id: str) -> None:
    """Nothing more is started."""
    await connection.execute(_CANCEL_WAITING, workflow_run_id)


async def finish_workflow_run(connection: Connection, workflow_run_id: str, state: WorkflowRunState) -> None:
    """Record how a workflow run ended."""
    await connection.execute(_FINISH, workflow_run_id, state)


def _record(row: Any) -> WorkflowRunRecord:
    return WorkflowRunRecord(**{**dict(row), "state": WorkflowRunState(row["state"])})
