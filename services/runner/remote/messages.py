"""What an agent and the holder of the lease say to each other: JSON objects, one a WebSocket message.

The agent is the product's own program, but it works beside a job that nobody here wrote. So the holder believes it as
little as it can: what comes has one of these shapes and is within these bounds, or ends the attempt.
"""

from typing import Annotated, Any, Literal, TypeAlias, TypeVar

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from libs.common.s3_requests import PresignedRequest
from services.runner.holder import Order, Provision
from services.runner.interrupts import Interrupt
from services.runner.limits import Rules
from services.runner.sandbox.layers import Level
from services.runner.store import Timings
from services.runner.values import UnstorableValue, parse_json

MAX_LINES = 250
"""Lines of a log in one message."""

MESSAGE_OVERHEAD_BYTES = 4 * 1024 * 1024
"""What a message may be larger than the largest result, or than parameters and secrets."""

MAX_MILLISECONDS = 2**31 - 1
"""As PostgreSQL has room for."""

_MAX_LINE_CHARACTERS = 128 * 1024
_MAX_TEXT = 4100
_MAX_PARTS = 10_000
_MAX_WORD = 100


class NotUnderstood(Exception):
    """What came is no message that may come; the message says why."""


class _Message(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class _Question(_Message):
    """A message that is answered by one with the same `id`."""

    id: int = Field(ge=1, le=2**53)


_Path = Annotated[str, Field(min_length=1, max_length=2048)]
_Size = Annotated[int, Field(ge=0, le=2**53)]
_Milliseconds = Annotated[int, Field(ge=0, le=MAX_MILLISECONDS)]
_Digest = Annotated[str, Field(pattern=r"^sha256:[0-9a-f]{64}$")]
_Word = Annotated[str, Field(max_length=_MAX_WORD)]


class Line(_Message):
    """A message for the log. `system` is what the agent itself says."""

    source: Literal["stdout", "stderr", "logger", "system"]
    level: Literal["debug", "info", "warning", "error"]
    message: str = Field(max_length=_MAX_LINE_CHARACTERS)
    fields: dict[str, Any] | None = None


class Lines(_Message):
    """What the log is to have next, and how many lines were dropped before it, since the job said too much."""

    type: Literal["lines"] = "lines"
    lines: list[Line] = Field(max_length=MAX_LINES)
    dropped: int = Field(0, ge=0, le=2**53)


class Confined(_Message):
    """How the job is confined."""

    level: Level
    layers: list[_Word] = Field(max_length=50)
    network: bool


class Phases(_Message):
    """What the phases have cost, in milliseconds since the agent was told what to do."""

    first_byte_ms: _Milliseconds | None = None
    fetch_ms: _Milliseconds | None = None
    start_ms: _Milliseconds | None = None
    handler_ms: _Milliseconds | None = None
    upload_ms: _Milliseconds | None = None
    remove_ms: _Milliseconds | None = None

    @classmethod
    def of(cls, timings: Timings) -> "Phases":
        """The same for the wire."""
        return cls(**{name: getattr(timings, name) for name in cls.model_fields})


class Started(_Message):
    """The handler is being called."""

    type: Literal["started"] = "started"
    phases: Phases
    confined: Confined | None


class Progress(_Message):
    """How far the handler says it is."""

    type: Literal["progress"] = "progress"
    fraction: float | None = Field(ge=0, le=1)
    message: str | None = Field(max_length=_MAX_TEXT)


class WantRead(_Question):
    """A way to read the bundle, or an input."""

    type: Literal["read"] = "read"
    key: str = Field(max_length=1024)


class WantUploading(_Question):
    """To write outputs from now on, in parts some of them."""

    type: Literal["uploading"] = "uploading"
    in_parts: bool


class WantPut(_Question):
    """A way to write an output in one request."""

    type: Literal["put"] = "put"
    path: _Path
    size: _Size
    digest: _Digest


class WantUpload(_Question):
    """To write an output in parts, anew."""

    type: Literal["upload"] = "upload"
    path: _Path


class WantPart(_Question):
    """A way to write the next part of an output."""

    type: Literal["part"] = "part"
    path: _Path
    number: int = Field(ge=1, le=_MAX_PARTS)
    size: _Size
    digest: _Digest


class WantCompletion(_Question):
    """To make an output of the parts that were sent; `etags` is what the bucket answered to each."""

    type: Literal["complete"] = "complete"
    path: _Path
    digest: _Digest
    etags: list[_Word] = Field(min_length=1, max_length=_MAX_PARTS)


class WantAbortion(_Question):
    """To forget the parts that were sent."""

    type: Literal["abort"] = "abort"
    path: _Path


class Ended(_Message):
    """How the attempt ended. `result` is JSON: a value may be nested deeper than a message."""

    type: Literal["ended"] = "ended"
    state: Literal["succeeded", "failed", "cancelled", "timed_out", "interrupted"]
    result: str | None = None
    kind: _Word | None = None
    error: str | None = Field(None, max_length=_MAX_TEXT)
    log_tail: list[Annotated[str, Field(max_length=1000)]] = Field(default_factory=list, max_length=50)
    phases: Phases
    confined: Confined | None
    received_bytes: _Size


Question: TypeAlias = WantRead | WantUploading | WantPut | WantUpload | WantPart | WantCompletion | WantAbortion

FromAgent: TypeAlias = Annotated[Lines | Started | Progress | Question | Ended, Field(discriminator="type")]


class Assigned(_Message):
    """What the agent is to do, and under which rules. `parameters` are JSON, and those of `order` empty."""

    type: Literal["assigned"] = "assigned"
    order: Order
    parameters: str
    provision: Provision
    rules: Rules
    sandbox: Level | None
    sandbox_minimum: Level
    max_log_bytes: int
    silence_seconds: float = Field(description="After so long without a message the holder is gone.")


class Alive(_Message):
    """The holder is there."""

    type: Literal["alive"] = "alive"


class Interrupted(_Message):
    """The attempt is to end."""

    type: Literal["interrupt"] = "interrupt"
    reason: Interrupt


class Answer(_Message):
    """The answer to a question that wants a request, or only to be heard."""

    type: Literal["answer"] = "answer"
    id: int
    request: PresignedRequest | None = None


class Refusal(_Message):
    """Why a question has no such answer."""

    type: Literal["refusal"] = "refusal"
    id: int
    reason: Literal["missing", "unavailable", "lost"]
    message: str


class Received(_Message):
    """How the attempt ended was heard: the agent may go."""

    type: Literal["received"] = "received"


FromHolder: TypeAlias = Annotated[
    Assigned | Alive | Interrupted | Answer | Refusal | Received, Field(discriminator="type")
]

Spoken = TypeVar("Spoken")

FROM_AGENT: TypeAdapter[FromAgent] = TypeAdapter(FromAgent)
FROM_HOLDER: TypeAdapter[FromHolder] = TypeAdapter(FromHolder)


def understand(text: str, messages: TypeAdapter[Spoken]) -> Spoken:
    """The message that `text` is, or NotUnderstood. What was sent is not in the error: it may have secrets."""
    try:
        return messages.validate_python(parse_json(text))
    except UnstorableValue:
        raise NotUnderstood("it is not JSON") from None
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False, include_context=False)[0]
        place = ".".join(str(part) for part in first["loc"])
        raise NotUnderstood(f"{place}: {first['msg']}"[:300]) from None
