"""What is read of a cluster's objects, of all that they have; and the words that they are found by."""

from datetime import datetime

from pydantic import BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel

NAME_LABEL = "app.kubernetes.io/name"
MANAGER_LABEL = "app.kubernetes.io/managed-by"
RUN_LABEL = "stowage.dev/run"
ATTEMPT_LABEL = "stowage.dev/attempt"
SLUG_LABEL = "stowage.dev/slug"
RUNNER_LABEL = "stowage.dev/runner"
NETWORK_LABEL = "stowage.dev/network"
LEASE_ANNOTATION = "stowage.dev/lease"
JOB_NAME_LABEL = "job-name"
"""With which Kubernetes marks the pods of a Job."""

COMMON_LABELS = {NAME_LABEL: "stowage-run", MANAGER_LABEL: "stowage-runner"}
CONTAINER = "run"


class _Shape(BaseModel):
    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True, extra="ignore")


class Metadata(_Shape):
    """Of any object."""

    name: str
    uid: str
    resource_version: str = ""
    labels: dict[str, str] = Field(default_factory=dict)
    annotations: dict[str, str] = Field(default_factory=dict)
    creation_timestamp: datetime | None = None
    deletion_timestamp: datetime | None = None


class Condition(_Shape):
    """Of a Job or a pod."""

    type: str
    status: str
    reason: str = ""
    message: str = ""


class Waiting(_Shape):
    """Why a container is not there yet."""

    reason: str = ""
    message: str = ""


class Terminated(_Shape):
    """How a container ended."""

    exit_code: int
    reason: str = ""
    message: str = ""


class ContainerState(_Shape):
    """One of them is set; none before the node knows."""

    waiting: Waiting | None = None
    terminated: Terminated | None = None


class ContainerStatus(_Shape):
    """Of the one container that pods of runs have."""

    name: str
    state: ContainerState = Field(default_factory=ContainerState)


class PodStatus(_Shape):
    """What became of a pod."""

    phase: str = "Pending"
    reason: str = ""
    message: str = ""
    conditions: list[Condition] = Field(default_factory=list)
    container_statuses: list[ContainerStatus] = Field(default_factory=list)


class PodSpec(_Shape):
    """Where it is."""

    node_name: str = ""


class Pod(_Shape):
    """A pod."""

    metadata: Metadata
    spec: PodSpec = Field(default_factory=PodSpec)
    status: PodStatus = Field(default_factory=PodStatus)

    def condition(self, name: str) -> Condition | None:
        """The condition of this type, where it has it."""
        return next((found for found in self.status.conditions if found.type == name), None)

    @property
    def container(self) -> ContainerState:
        """The state of its container."""
        return next((found.state for found in self.status.container_statuses if found.name == CONTAINER), _UNKNOWN)


class JobStatus(_Shape):
    """What became of a Job."""

    conditions: list[Condition] = Field(default_factory=list)


class Job(_Shape):
    """A Job."""

    metadata: Metadata
    status: JobStatus = Field(default_factory=JobStatus)

    @property
    def failure(self) -> Condition | None:
        """Why it failed, where it has."""
        return next(
            (found for found in self.status.conditions if found.type == "Failed" and found.status == "True"), None
        )


_UNKNOWN = ContainerState()
