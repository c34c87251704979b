"""The audit trail: who changed what, appended in the transaction of the change.

Appending is an INSERT that waits for nobody. The registry gives events their places in a Merkle tree afterwards, which
is what makes a later change, removal or insertion show.
"""

from contextvars import ContextVar
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from libs.common.database import Connection

_APPEND = """
    INSERT INTO audit.events (actor, action, subject, digest, previous_digest, reason, request_id, client, detail)
    VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)
    RETURNING id
"""


_CALLER: ContextVar[tuple[str | None, str | None]] = ContextVar("caller", default=(None, None))
"""Id and address of the request that is being answered."""


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


def answer_to(request_id: str, client: str | None) -> None:
    """Say which request the current task answers, before it is known who asks."""
    _CALLER.set((request_id, client))


def origin_of_caller(actor: str) -> Origin:
    """The origin of what the request brings about that is being answered, put down to `actor`."""
    return Origin(actor, *_CALLER.get())


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
