"""The audit trail: who changed what, appended in the transaction of the change."""

from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from libs.common.database import Connection

_APPEND = """
    INSERT INTO audit.events (actor, action, subject, digest, previous_digest, reason, request_id, client, detail)
    VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)
    RETURNING id
"""

_SELECT = """
    SELECT id, at, actor, action, subject, digest, previous_digest, reason, request_id, client, detail
    FROM audit.events
    WHERE ($1::text IS NULL OR actor = $1)
      AND ($2::text IS NULL OR action = $2)
      AND ($3::text IS NULL OR subject = $3 OR starts_with(subject, $3 || '@'))
      AND ($4::timestamptz IS NULL OR at >= $4)
      AND ($5::timestamptz IS NULL OR at < $5)
      AND ($6::bigint IS NULL OR id < $6)
    ORDER BY id DESC
    LIMIT $7
"""


@dataclass(frozen=True, slots=True)
class Origin:
    """Who asks, and how the request can be found again: goes into every event that the request causes."""

    actor: str
    request_id: str | None = None
    client: str | None = None


@dataclass(frozen=True, slots=True)
class Event:
    """One line of the trail. `subject` is what changed: `bundle@version`, `job/slug`, `token/name`, `import/id`."""

    action: str
    subject: str
    digest: str | None = None
    previous_digest: str | None = None
    reason: str | None = None
    detail: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class RecordedEvent:
    """An event as it stands in the trail."""

    id: int
    at: datetime
    actor: str
    action: str
    subject: str
    digest: str | None
    previous_digest: str | None
    reason: str | None
    request_id: str | None
    client: str | None
    detail: dict[str, Any]


@dataclass(frozen=True, slots=True)
class EventFilter:
    """Which events to list. `subject` matches exactly, or everything about one bundle (`slug` finds `slug@1.2.0`)."""

    actor: str | None = None
    action: str | None = None
    subject: str | None = None
    since: datetime | None = None
    until: datetime | None = None


async def append(connection: Connection, origin: Origin, event: Event) -> int:
    """Append an event and return its id. Call it in the transaction that makes the change."""
    identifier: int = await connection.fetchval(
        _APPEND,
        origin.actor,
        event.action,
        event.subject,
        event.digest,
        event.previous_digest,
        event.reason,
        origin.request_id,
        origin.client,
        event.detail,
    )
    return identifier


async def list_events(
    connection: Connection, wanted: EventFilter, *, before: int | None, limit: int
) -> list[RecordedEvent]:
    """Events, newest first, with ids below `before`."""
    rows = await connection.fetch(
        _SELECT, wanted.actor, wanted.action, wanted.subject, wanted.since, wanted.until, before, limit
    )
    return [RecordedEvent(**dict(row)) for row in rows]
