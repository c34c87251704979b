"""The audit trail over HTTP: events, and the proofs that they are as they were."""

from collections.abc import AsyncIterator
from contextlib import aclosing
from datetime import UTC, datetime, timedelta

from aiohttp import web
from pydantic import Field

from libs.common import models
from libs.common.api import Answer, Content, operation
from libs.common.audit import RecordedEvent
from libs.common.auth import Scope
from libs.common.errors import InvalidRequest, NotFound
from libs.common.paging import PageQuery, page_of
from libs.common.web import json_response, send_stream
from services.registry import evidence
from services.registry.exports import export_line
from services.registry.resources import CHECKPOINTS, POOL
from services.registry.store import trail

_LINES_AT_ONCE = 500
_MAX_ID = 2**63 - 1
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)

_EXPORT = Content(
    ("application/x-ndjson",),
    "An event a line, with the time in full, and besides `position` and `leafHash` (base64), its place in the tree and "
    "the hash that stands there; both are null where the event is not sealed yet.",
)
_NOTE = Content(
    ("text/plain",),
    "A checkpoint (C2SP tlog-checkpoint) in a signed note (C2SP signed-note): origin, size and root of the tree.",
    "stowage/stowage\n1842\n6hcRhJ8n1rZXG3a1S5uhnFQ1LJ1bu1ywBKiFlYFmJ4Y=\n\n— stowage/stowage jK5h2w…\n",
)
_KEY = Content(("text/plain",), "The key as `origin+id+base64`, as programs have it that read signed notes.")


class _Filter(models.Request):
    actor: str | None = None
    action: str | None = None
    subject: str | None = Field(None, description="A bundle with all its versions, or exactly what it names.")
    since: models.AwareMoment | None = Field(None, description="No event before that.")
    until: models.AwareMoment | None = Field(None, description="No event from that on.")

    def asked(self) -> trail.EventFilter:
        """The events that are asked for."""
        return trail.EventFilter(self.actor, self.action, self.subject, self.since, self.until)


class AuditQuery(PageQuery, _Filter):
    """Which events, a page of them."""


class ExportQuery(_Filter):
    """Which events, all of them."""


class ConsistencyQuery(models.Request):
    """Two sizes of the tree."""

    first: int = Field(alias="from", ge=1, le=_MAX_ID, description="The smaller size.")
    second: int | None = Field(
        None, alias="to", ge=1, le=_MAX_ID, description="The larger size; by default that of the newest checkpoint."
    )


@operation(Scope.AUDIT_READ, answers={200: models.Page[models.AuditEvent]}, errors=["invalid-cursor"])
async def list_events(request: web.Request, query: AuditQuery) -> web.Response:
    """Read the audit trail, newest first."""
    wanted = query.wanted(int, int)
    before = _moment_and_id(*wanted.key) if wanted.key else None
    async with request.app[POOL].acquire() as connection:
        rows = await trail.list_events(connection, query.asked(), before=before, limit=wanted.limit + 1)
    return json_response(page_of(rows, wanted, models.AuditEvent.model_validate, _key))


@operation(Scope.AUDIT_READ, answers={200: _EXPORT})
async def export_events(request: web.Request, query: ExportQuery) -> web.StreamResponse:
    """Export the audit trail.

    JSON lines, oldest first: all events that match, in the order in which they were sealed. Without a filter it is
    what `audit-verify --export` reads.
    """
    response = web.StreamResponse(headers={"Content-Type": "application/x-ndjson; charset=utf-8"})
    async with aclosing(evidence.export(request.app[POOL], query.asked())) as events:
        return await send_stream(request, response, _lines(events))


async def _lines(events: AsyncIterator[trail.ExportedEvent]) -> AsyncIterator[bytes]:
    lines: list[str] = []
    async for event in events:
        lines.append(export_line(event))
        if len(lines) == _LINES_AT_ONCE:
            yield "".join(lines).encode()
            lines.clear()
    yield "".join(lines).encode()


@operation(Scope.AUDIT_READ, answers={200: models.AuditEvent}, errors=["event-not-found"])
async def get_event(request: web.Request) -> web.Response:
    """Read an event."""
    async with request.app[POOL].acquire() as connection:
        event, _ = await evidence.find(connection, _event_id(request))
    return json_response(models.AuditEvent.model_validate(event))


@operation(
    Scope.AUDIT_READ,
    answers={200: models.InclusionProof},
    errors=["event-not-found", "event-not-sealed", "no-checkpoint", "audit-not-signed", "audit-trail-inconsistent"],
)
async def get_proof(request: web.Request) -> web.Response:
    """Prove that the newest checkpoint signs an event."""
    checkpoints = request.app[CHECKPOINTS]
    async with request.app[POOL].acquire() as connection:
        return json_response(await evidence.prove_inclusion(connection, checkpoints, _event_id(request)))


@operation(
    Scope.AUDIT_READ,
    answers={200: models.ConsistencyProof},
    errors=["tree-too-small", "no-checkpoint", "audit-not-signed", "audit-trail-inconsistent"],
)
async def get_consistency(request: web.Request, query: ConsistencyQuery) -> web.Response:
    """Prove that the trail has only grown.

    That of the larger size continues that of the smaller, with nothing changed or left out.
    """
    async with request.app[POOL].acquire() as connection:
        second = query.second or (await request.app[CHECKPOINTS].newest(connection)).tree_size
        return json_response(await evidence.prove_consistency(connection, query.first, second))


@operation(
    Scope.AUDIT_READ,
    answers={200: _NOTE},
    errors=["no-checkpoint", "audit-not-signed", "audit-trail-inconsistent"],
)
async def get_checkpoint(request: web.Request) -> web.Response:
    """Read the newest checkpoint.

    What of the audit trail was signed last.
    """
    async with request.app[POOL].acquire() as connection:
        newest = await request.app[CHECKPOINTS].newest(connection)
    return web.Response(text=newest.note, content_type="text/plain", charset="utf-8")


@operation(Scope.AUDIT_READ, answers={200: Answer(_KEY)}, errors=["audit-not-signed"])
async def get_key(request: web.Request) -> web.Response:
    """Read the public key that checks checkpoints.

    Whoever doesn't trust the registry has it from elsewhere.
    """
    return web.Response(text=f"{request.app[CHECKPOINTS].public_key}\n", content_type="text/plain", charset="utf-8")


def _event_id(request: web.Request) -> int:
    text = request.match_info["id"]
    if not (text.isascii() and text.isdigit() and len(text) < 20 and int(text) <= _MAX_ID):
        raise NotFound(f"there is no event “{text[:40]}”: the ids of events are numbers.", kind="event-not-found")
    return int(text)


def _key(event: RecordedEvent) -> tuple[int, int]:
    """What events are sorted by: microseconds since 1970, and the id."""
    return (event.at - _EPOCH) // _MICROSECOND, event.id


def _moment_and_id(microseconds: int, event_id: int) -> tuple[datetime, int]:
    try:
        return _EPOCH + microseconds * _MICROSECOND, event_id
    except OverflowError:
        raise InvalidRequest(
            "the cursor is not one that this list gave. Begin again without a cursor.", kind="invalid-cursor"
        ) from None


ROUTES = (
    web.get("/audit", list_events),
    web.get("/audit/export", export_events),
    web.get("/audit/events/{id}", get_event),
    web.get("/audit/events/{id}/proof", get_proof),
    web.get("/audit/consistency", get_consistency),
    web.get("/audit/checkpoint", get_checkpoint),
    web.get("/audit/key", get_key),
)
