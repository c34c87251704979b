"""The audit trail over HTTP."""

from aiohttp import web
from pydantic import AwareDatetime, Field

from libs.common import audit, models
from libs.common.api import operation
from libs.common.auth import Scope
from libs.common.paging import PageQuery, page_of
from libs.common.web import json_response
from services.registry.resources import POOL


class AuditQuery(PageQuery):
    """Which events."""

    actor: str | None = None
    action: str | None = None
    subject: str | None = Field(None, description="A bundle with all its versions, or exactly what it names.")
    since: AwareDatetime | None = Field(None, description="No event before that.")
    until: AwareDatetime | None = Field(None, description="No event from that on.")


@operation(Scope.AUDIT_READ, answers={200: models.Page[models.AuditEvent]}, errors=["invalid-cursor"])
async def list_events(request: web.Request, query: AuditQuery) -> web.Response:
    """Read the audit trail, newest first."""
    wanted = query.wanted(int)
    asked = audit.EventFilter(query.actor, query.action, query.subject, query.since, query.until)
    async with request.app[POOL].acquire() as connection:
        rows = await audit.list_events(connection, asked, before=wanted.key, limit=wanted.limit + 1)
    return json_response(page_of(rows, wanted, models.AuditEvent.model_validate, lambda row: row.id))


ROUTES = (web.get("/audit", list_events),)
