"""The builder's HTTP interface."""

import json
from contextlib import aclosing
from typing import Literal

from aiohttp import web
from pydantic import BaseModel, ConfigDict, Field

from libs.common.auth import Scope
from libs.common.errors import InvalidRequest
from libs.common.models import ImportRequest
from libs.common.paging import read_page
from libs.common.web import json_response, origin_of, read_model, read_query, requires
from services.builder.imports import Imports
from services.builder.logs import BuildLogs
from services.builder.store import ImportEvent

IMPORTS = web.AppKey("imports", Imports)
LOGS = web.AppKey("logs", BuildLogs)

_MAX_EVENT_NUMBER = 2**31 - 1


class _ListQuery(BaseModel):
    model_config = ConfigDict(extra="forbid")

    example: str | None = Field(None, max_length=128)
    cursor: str | None = None
    limit: str | None = None


class _LogQuery(BaseModel):
    model_config = ConfigDict(extra="forbid")

    follow: Literal["true", "false"] = "false"


def routes() -> list[web.RouteDef]:
    """What the builder answers to."""
    return [
        web.post("/examples/import", _request_import),
        web.get("/imports", _list_imports),
        web.get("/imports/{id}", _get_import),
        web.get("/imports/{id}/events", _follow_import),
        web.get("/builds/{id}", _get_build),
        web.get("/builds/{id}/log", _get_log),
    ]


@requires(Scope.BUILDS_WRITE)
async def _request_import(request: web.Request) -> web.Response:
    wanted = await read_model(request, ImportRequest)
    accepted = await request.app[IMPORTS].request(wanted, origin_of(request))
    return json_response(accepted, status=202, headers={"Location": f"/imports/{accepted.id}"})


@requires(Scope.BUILDS_WRITE)
async def _list_imports(request: web.Request) -> web.Response:
    query = read_query(request, _ListQuery)
    page = await request.app[IMPORTS].page(read_page(request), example=query.example)
    return json_response(page)


@requires(Scope.BUILDS_WRITE)
async def _get_import(request: web.Request) -> web.Response:
    return json_response(await request.app[IMPORTS].get(request.match_info["id"]))


@requires(Scope.BUILDS_WRITE)
async def _follow_import(request: web.Request) -> web.StreamResponse:
    events = await request.app[IMPORTS].events(request.match_info["id"], after=_last_event_id(request))
    if events is None:
        return web.Response(status=204)  # tells an EventSource not to come back
    response = web.StreamResponse(headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"})
    response.content_type = "text/event-stream"
    await response.prepare(request)
    async with aclosing(events):
        async for event in events:
            await response.write(_render(event))
    return response


@requires(Scope.BUILDS_WRITE)
async def _get_build(request: web.Request) -> web.Response:
    return json_response(await request.app[IMPORTS].build(request.match_info["id"]))


@requires(Scope.BUILDS_WRITE)
async def _get_log(request: web.Request) -> web.StreamResponse:
    follow = read_query(request, _LogQuery).follow == "true"
    pieces = await request.app[LOGS].open(request.match_info["id"], follow=follow)
    response = web.StreamResponse(headers={"Cache-Control": "no-store"})
    response.content_type = "text/plain"
    response.charset = "utf-8"
    await response.prepare(request)
    async with aclosing(pieces):
        async for piece in pieces:
            await response.write(piece)
    return response


def _last_event_id(request: web.Request) -> int:
    given = request.headers.get("Last-Event-ID", "0")
    number = int(given) if given.isascii() and given.isdigit() and len(given) < 20 else -1
    if not 0 <= number <= _MAX_EVENT_NUMBER:
        raise InvalidRequest("Last-Event-ID must be the number of an event of this import.")
    return number


def _render(event: ImportEvent | None) -> bytes:
    """An event as server-sent events are written (WHATWG HTML, section 9.2); a comment for a sign of life."""
    if event is None:
        return b": still here\n\n"
    return f"id: {event.seq}\nevent: {event.kind}\ndata: {json.dumps(event.data, ensure_ascii=False)}\n\n".encode()
