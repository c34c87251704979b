"""Jobs and workflows."""

from enum import StrEnum
from typing import Annotated, Any, Literal

from pydantic import Field

from libs.common.models.base import Request, Resource, Timestamp


class Limits(Request):
    """What a run may use at most; null is the runner's own setting.

    `nodeClass` names a kind of nodes of the cluster where runs are executed as Jobs: what its operator offers.
    """

    timeout_seconds: float | None = Field(None, gt=0, le=86_400)
    memory_bytes: int | None = Field(None, ge=16 * 1024 * 1024)
    processes: int | None = Field(None, ge=1)
    disk_bytes: int | None = Field(None, ge=0)
    cpu_seconds: int | None = Field(None, ge=1)
    file_bytes: int | None = Field(None, ge=0)
    node_class: str | None = Field(None, pattern=r"^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$")


class RetryOn(StrEnum):
    """What a run may be tried again after."""

    LOST = "lost"
    UNAVAILABLE = "unavailable"
    FAILED = "failed"
    TIMED_OUT = "timed_out"


class Backoff(Request):
    """How long to wait before another attempt.

    `seconds` each time, or twice as long each time, but no more than `maxSeconds`; and then up to the share `jitter` of
    that more or less, so that runs that failed together don't come back together.
    """

    kind: Literal["fixed", "exponential"] = "exponential"
    seconds: float = Field(5.0, ge=0, le=86_400)
    max_seconds: float = Field(300.0, ge=0, le=86_400)
    jitter: float = Field(0.2, ge=0, le=1)


class RetryPolicy(Request):
    """How often a run is tried, and after what.

    Unless a job says more, only when its runner was lost, or when what it needs was not to be had before its handler
    was called: whether a handler may be called again after it failed, only its author knows.
    """

    attempts: int = Field(3, ge=1, le=20)
    on: list[RetryOn] = Field(default_factory=lambda: [RetryOn.LOST, RetryOn.UNAVAILABLE])
    backoff: Backoff = Field(default_factory=Backoff)


SECRET_NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$"  # noqa: S105  # a pattern
"""What a secret may be called: a name that a file can have, in this directory and no other."""


class QueueLimits(Request):
    """How many runs of a job may be queued, and how many may go at a time; null is as many as there are."""

    max_queued: int | None = Field(None, ge=1, le=1_000_000)
    max_running: int | None = Field(None, ge=1, le=10_000)


Priority = Annotated[int, Field(ge=-100, le=100)]

ConcurrencyKey = Annotated[str, Field(min_length=1, max_length=200)]


class JobDefinition(Request):
    """A runnable definition: a bundle reference and defaults.

    Of its runs with the same `concurrencyKey`, in which `{{ parameters.name }}` stands for the run's own, one goes at a
    time. Runs of higher `priority` come first. `secrets` are names; the runner has the values. With `allowYanked`
    runs may be of a version that was yanked.
    """

    bundle: str = Field(description="slug@version, slug@latest or slug@sha256:…")
    description: str | None = None
    parameters: dict[str, Any] = Field(default_factory=dict)
    secrets: list[Annotated[str, Field(pattern=SECRET_NAME)]] = Field(default_factory=list, max_length=50)
    limits: Limits = Field(default_factory=Limits)
    retry: RetryPolicy = Field(default_factory=RetryPolicy)
    queue: QueueLimits = Field(default_factory=QueueLimits)
    priority: Priority = 0
    concurrency_key: ConcurrencyKey | None = None
    allow_yanked: bool = False


class Job(Resource):
    """A job as it is kept."""

    slug: str
    definition: JobDefinition
    revision: int
    updated_at: Timestamp
    updated_by: str


class InputSource(Request):
    """Where an input comes from: an output of an earlier step, or of a run by id (which may be a template).

    A `path` that ends in `/` means everything below it, given to the job as a directory.
    """

    step: str | None = None
    run: str | None = None
    path: str = Field(min_length=1, max_length=1024)
    optional: bool = False


class StepDefinition(Request):
    """One step of a workflow."""

    name: str = Field(pattern=r"^[a-z][a-z0-9_]{0,62}$")
    job: str
    depends_on: list[str] = Field(default_factory=list)
    parameters: dict[str, Any] = Field(default_factory=dict)
    inputs: dict[str, InputSource] = Field(default_factory=dict)


class WorkflowDefinition(Request):
    """A DAG of steps, each a job."""

    description: str | None = None
    parameters: dict[str, Any] = Field(default_factory=dict)
    steps: list[StepDefinition] = Field(min_length=1, max_length=200)


class Workflow(Resource):
    """A workflow as it is kept."""

    slug: str
    definition: WorkflowDefinition
    revision: int
    updated_at: Timestamp
    updated_by: str
