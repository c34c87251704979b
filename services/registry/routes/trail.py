"""The audit trail over HTTP."""

from aiohttp import web
from pydantic import AwareDatetime

from libs.common import audit, models
from libs.common.auth import Scope
from libs.common.paging import page_of, read_page
from libs.common.web import json_response, read_query, requires
from services.registry.resources import POOL


class _AuditQuery(models.Request):
    """The query string of the audit trail. `subject` finds a bundle with all its versions, or exactly what it names."""

    actor: str | None = None
    action: str | None = None
    subject: str | None = None
    since: AwareDatetime | None = None
    until: AwareDatetime | None = None
    limit: str | None = None
    cursor: str | None = None


@requires(Scope.AUDIT_READ)
async def list_events(request: web.Request) -> web.Response:
    """GET /audit"""
    query = read_query(request, _AuditQuery)
    wanted = read_page(request, int)
    asked = audit.EventFilter(query.actor, query.action, query.subject, query.since, query.until)
    async with request.app[POOL].acquire() as connection:
        rows = await audit.list_events(connection, asked, before=wanted.key, limit=wanted.limit + 1)
    return json_response(page_of(rows, wanted, models.AuditEvent.model_validate, lambda row: row.id))


ROUTES = (web.get("/audit", list_events),)
