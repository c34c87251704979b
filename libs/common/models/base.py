"""What all shapes on the wire have in common: requests, resources, pages, moments."""

from datetime import UTC, datetime
from typing import Annotated, Any, Generic, TypeVar

from pydantic import (
    AfterValidator,
    AwareDatetime,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    WithJsonSchema,
)
from pydantic.alias_generators import to_camel
from pydantic_core import to_json


def rfc3339(moment: datetime) -> str:
    """A moment as RFC 3339 in UTC with milliseconds: `2026-11-22T21:46:00.123Z`."""
    return f"{moment.astimezone(UTC).isoformat(timespec='milliseconds')[:-6]}Z"  # without its +00:00


Timestamp = Annotated[
    datetime,
    PlainSerializer(rfc3339, when_used="json"),
    WithJsonSchema({"type": "string", "format": "date-time"}),
]


def _as_text(value: object) -> object:
    """Refuse numbers for moments, which would be taken for seconds since 1970."""
    if isinstance(value, datetime) or (isinstance(value, str) and "T" in value.upper()):
        return value
    raise ValueError("expected a time as RFC 3339, such as 2030-01-01T00:00:00Z")


def _within_calendar(moment: datetime) -> datetime:
    """Refuse what is before the year 1 or after 9999 in UTC."""
    try:
        moment.astimezone(UTC)
    except OverflowError:
        raise ValueError("expected a time from the year 1 to 9999") from None
    return moment


Moment = Annotated[datetime, BeforeValidator(_as_text), AfterValidator(_within_calendar)]
"""A moment that a request names."""

AwareMoment = Annotated[AwareDatetime, BeforeValidator(_as_text), AfterValidator(_within_calendar)]
"""The same, with its time zone."""


class Resource(BaseModel):
    """Something that a service answers with."""

    model_config = ConfigDict(
        alias_generator=to_camel,
        populate_by_name=True,
        extra="ignore",
        from_attributes=True,
        json_schema_serialization_defaults_required=True,
    )


class Request(BaseModel):
    """Something that a client sends."""

    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True, extra="forbid")


def written(resource: BaseModel) -> bytes:
    """A resource as it is on the wire: JSON, with a newline at its end for people's terminals."""
    return to_json(resource, by_alias=True) + b"\n"


Item = TypeVar("Item", bound=Resource)


class Page(Resource, Generic[Item]):
    """One page of a list; `next` is the cursor of the next one, null on the last."""

    items: list[Item]
    next: str | None = None

    @classmethod
    def model_parametrized_name(cls, params: tuple[Any, ...]) -> str:
        """`VersionPage` for a page of versions: what the schema is called."""
        return f"{params[0].__name__}Page"


class Problem(Resource):
    """An error (RFC 9457). `type` is stable, `detail` is for a person; more members are facts for programs."""

    type: str
    title: str
    status: int
    detail: str
    request_id: str


class Health(Resource):
    """That the process answers."""

    status: str


class Readiness(Resource):
    """Whether a service can do its work: `ok`, or what is wrong, for each part that it needs."""

    status: str
    checks: dict[str, str]


class Failure(Resource):
    """Why something ended badly: a stable type, and a sentence for a person."""

    type: str
    message: str
    log_tail: list[str] = Field(default_factory=list)
