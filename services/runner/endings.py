"""How an attempt ends."""

from dataclasses import dataclass, field
from typing import Any

from libs.common.models import Failure, Output, RunState
from services.runner.values import clean_text

_MAX_MESSAGE = 4000


class RunFailed(Exception):
    """The run can't succeed any more. `kind` is a stable name, the message a sentence for a person."""

    def __init__(self, kind: str, message: str, *, log_tail: list[str] | None = None) -> None:
        super().__init__(message)
        self.kind = kind
        self.log_tail = log_tail or []


class AttemptInterrupted(Exception):
    """The attempt was interrupted before it came to an end; why, its interrupts say."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a run came to."""

    state: RunState
    result: Any = None
    error: Failure | None = None
    outputs: list[Output] = field(default_factory=list)

    @classmethod
    def failed(
        cls, kind: str, message: str, *, state: RunState = RunState.FAILED, log_tail: list[str] | None = None
    ) -> "Outcome":
        """An outcome with an error that can be stored."""
        failure = Failure(
            type=clean_text(kind, 100), message=clean_text(message, _MAX_MESSAGE), log_tail=log_tail or []
        )
        return cls(state, error=failure)

    @classmethod
    def lost(cls, message: str) -> "Outcome":
        """What made the attempt is gone, and nobody can tell how far it came."""
        return cls.failed("lost", message, state=RunState.LOST)
