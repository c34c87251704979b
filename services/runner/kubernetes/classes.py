"""Classes of nodes that an operator offers to jobs."""

from typing import Any

from pydantic import BaseModel, ConfigDict, Field, field_validator
from pydantic.alias_generators import to_camel

_OF_LIMITS = {"memory", "ephemeral-storage"}


class JobClass(BaseModel):
    """Where the pods of such jobs may be scheduled, and what they are given there, in the words of a PodSpec.

    `resources` are both requested and the limit.
    """

    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True, extra="forbid")

    node_selector: dict[str, str] = Field(default_factory=dict)
    tolerations: list[dict[str, Any]] = Field(default_factory=list)
    resources: dict[str, str] = Field(default_factory=dict)

    @field_validator("resources")
    @classmethod
    def _leaves_limits_to_jobs(cls, value: dict[str, str]) -> dict[str, str]:
        if refused := sorted(_OF_LIMITS.intersection(value)):
            raise ValueError(
                f"leave out {' and '.join(refused)}: that follows from each job's limits, “memoryBytes” and “diskBytes”"
            )
        return value
