"""Runs, workflow runs, and lines of logs."""

from enum import StrEnum
from typing import Any

from pydantic import Field

from libs.common.models.base import Failure, Request, Resource, Timestamp
from libs.common.models.definitions import ConcurrencyKey, InputSource, Priority


class RunState(StrEnum):
    """How far a run is; the last five are final."""

    QUEUED = "queued"
    STARTING = "starting"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"
    TIMED_OUT = "timed_out"
    LOST = "lost"

    @property
    def final(self) -> bool:
        """Whether nothing more will happen."""
        return self not in (RunState.QUEUED, RunState.STARTING, RunState.RUNNING)


class RunRequest(Request):
    """Run a bundle (`slug@1.2.0`, `slug@latest`, `slug@sha256:…`) or a job by its slug: exactly one of the two.

    `priority` and `concurrencyKey` go over those of the job; the key is taken as it is. `allowYanked` accepts a version
    that was yanked.
    """

    bundle: str | None = None
    job: str | None = None
    parameters: dict[str, Any] = Field(default_factory=dict)
    inputs: dict[str, InputSource] = Field(default_factory=dict)
    timeout_seconds: float | None = Field(None, gt=0, le=86_400)
    priority: Priority | None = None
    concurrency_key: ConcurrencyKey | None = None
    allow_yanked: bool = False


class Timings(Resource):
    """What each phase of a run's last attempt cost, in milliseconds; null where it was not reached.

    Queued: from acceptance to the lease. First byte: from the lease to the first byte of the bundle, and fetch: from
    the lease until bundle and inputs are verified. Start: from there until the handler is called. Handler, upload of
    the outputs, and removal of the run's directory: each by itself.
    """

    queued_ms: int | None = None
    first_byte_ms: int | None = None
    fetch_ms: int | None = None
    start_ms: int | None = None
    handler_ms: int | None = None
    upload_ms: int | None = None
    remove_ms: int | None = None


class Sandbox(Resource):
    """How a run was confined: the level, the layers it consists of, and whether it had the network."""

    level: str
    layers: list[str]
    network: bool


class Run(Resource):
    """One execution, pinned to an artifact digest when it was accepted."""

    id: str
    state: RunState
    slug: str
    version: str
    revision: int
    digest: str
    job: str | None
    workflow_run_id: str | None
    step: str | None
    parameters: dict[str, Any]
    inputs: dict[str, InputSource]
    result: Any
    error: Failure | None
    progress: float | None
    progress_message: str | None
    attempts: int
    next_attempt_at: Timestamp | None = None
    priority: int = 0
    concurrency_key: str | None = None
    timings: Timings
    sandbox: Sandbox | None
    created_at: Timestamp
    created_by: str
    started_at: Timestamp | None
    finished_at: Timestamp | None
    expired_at: Timestamp | None = None


class AttemptState(StrEnum):
    """How far an attempt is: running, or ended in one of the other ways."""

    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"
    TIMED_OUT = "timed_out"
    LOST = "lost"
    HANDED_BACK = "handed_back"


class Attempt(Resource):
    """One attempt at a run. `runner` is the machine and process that made it."""

    number: int
    state: AttemptState
    runner: str
    error: Failure | None
    started_at: Timestamp
    ended_at: Timestamp | None


class Output(Resource):
    """A file that a run left in `outputs/`."""

    path: str
    size: int
    digest: str
    content_type: str


class WorkflowRunState(StrEnum):
    """How far a workflow run is; the last three are final."""

    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"


class StepState(StrEnum):
    """How far a step is: waiting for what it depends on, then as its run; skipped when that failed."""

    WAITING = "waiting"
    QUEUED = "queued"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    SKIPPED = "skipped"
    CANCELLED = "cancelled"


class WorkflowRunRequest(Request):
    """Start a workflow; parameters go over the workflow's defaults."""

    parameters: dict[str, Any] = Field(default_factory=dict)


class Step(Resource):
    """One step of a workflow run and the run that executes it."""

    name: str
    job: str
    state: StepState
    run_id: str | None
    result: Any
    error: Failure | None


class WorkflowRun(Resource):
    """One execution of a workflow."""

    id: str
    workflow: str
    state: WorkflowRunState
    parameters: dict[str, Any]
    steps: list[Step]
    created_at: Timestamp
    created_by: str
    finished_at: Timestamp | None


class LogEntry(Resource):
    """One line of a log: its source (`stdout`, `stderr`, `logger`, `system`, a build stage) and what it says."""

    seq: int
    at: Timestamp
    source: str
    level: str
    message: str
    fields: dict[str, Any] | None = None
