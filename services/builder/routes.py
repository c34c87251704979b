"""The builder's HTTP interface."""

import json
from contextlib import aclosing

from aiohttp import web
from pydantic import Field

from libs.common.api import Answer, Content, Header, operation
from libs.common.auth import Scope
from libs.common.database import Connection
from libs.common.errors import InvalidRequest
from libs.common.idempotency import IDEMPOTENCY_ERRORS, IDEMPOTENCY_KEY, Claim, once
from libs.common.models import Build, Import, ImportRequest, Page, Request
from libs.common.openapi import Tag
from libs.common.paging import PageQuery
from libs.common.web import json_response, origin_of, send_stream
from services.builder.imports import Imports
from services.builder.logs import BuildLogs
from services.builder.store import ImportEvent

IMPORTS = web.AppKey("imports", Imports)
LOGS = web.AppKey("logs", BuildLogs)

TAGS = (
    Tag("Imports", "Rebuild the bundles of an example, publish them, and watch that.", ("examples", "imports")),
    Tag("Builds", "One source, turned into one artifact.", ("builds",)),
)
"""The groups of routes in the reference."""

_MAX_EVENT_NUMBER = 2**31 - 1


_LOCATION = Header("Location", "The import.", "/imports/imp_019aa5c3e1f200112233445566778899")
_LAST_EVENT_ID = Header("Last-Event-ID", "Only the events after this one.", "4")
_EVENTS = Content(
    ("text/event-stream",),
    "Server-sent events: `build.…` with the build and `import.…` with the import as data, and `definitions.updated`.",
    'id: 1\nevent: import.started\ndata: {"id": "imp_019aa5c3e1f200112233445566778899", "state": "running"}\n\n',
)
_LOG = Content(("text/plain",), "The log, as UTF-8.", "copy: 12 files\ninstall: npm ci\n")


class ImportsQuery(PageQuery):
    """Which imports."""

    example: str | None = Field(None, max_length=128)


class LogQuery(Request):
    """Which part of a log."""

    follow: bool = Field(default=False, description="Go on until the build has ended.")


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


@operation(
    Scope.BUILDS_WRITE,
    answers={202: Answer(Import, "It is accepted, and goes on by itself.", (_LOCATION,))},
    errors=["unknown-example", "unknown-bundle", "unprocessable", *IDEMPOTENCY_ERRORS],
    headers=[IDEMPOTENCY_KEY],
)
async def _request_import(request: web.Request, body: ImportRequest) -> web.Response:
    """Import an example.

    Its bundles are rebuilt and published with `force`, its jobs and workflows are brought up to date.
    """

    async def work(claim: Claim) -> web.Response:
        async def conclude(connection: Connection, accepted: Import) -> None:
            await claim.keep(connection, _accepted(accepted))

        return _accepted(await request.app[IMPORTS].request(body, origin_of(request), conclude=conclude))

    return await once(request, body, work)


@operation(Scope.BUILDS_WRITE, answers={200: Page[Import]}, errors=["invalid-cursor"])
async def _list_imports(request: web.Request, query: ImportsQuery) -> web.Response:
    """List imports, newest first."""
    return json_response(await request.app[IMPORTS].page(query.wanted(), example=query.example))


@operation(Scope.BUILDS_WRITE, answers={200: Import}, errors=["not-found"])
async def _get_import(request: web.Request) -> web.Response:
    """Get an import with its builds."""
    return json_response(await request.app[IMPORTS].get(request.match_info["id"]))


@operation(
    Scope.BUILDS_WRITE,
    answers={200: _EVENTS, 204: Answer(None, "Nothing comes after `Last-Event-ID`: don't come back.")},
    errors=["not-found"],
    headers=[_LAST_EVENT_ID],
)
async def _follow_import(request: web.Request) -> web.StreamResponse:
    """Watch an import until it ends."""
    events = await request.app[IMPORTS].events(request.match_info["id"], after=_last_event_id(request))
    if events is None:
        return web.Response(status=204)  # tells an EventSource not to come back
    response = web.StreamResponse(headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"})
    response.content_type = "text/event-stream"
    async with aclosing(events):
        return await send_stream(request, response, (_render(event) async for event in events))


@operation(Scope.BUILDS_WRITE, answers={200: Build}, errors=["not-found"])
async def _get_build(request: web.Request) -> web.Response:
    """Get a build."""
    return json_response(await request.app[IMPORTS].build(request.match_info["id"]))


@operation(Scope.BUILDS_WRITE, answers={200: _LOG}, errors=["not-found", "log-missing"])
async def _get_log(request: web.Request, query: LogQuery) -> web.StreamResponse:
    """Read the log of a build."""
    pieces = await request.app[LOGS].open(request.match_info["id"], follow=query.follow)
    response = web.StreamResponse(headers={"Cache-Control": "no-store"})
    response.content_type = "text/plain"
    response.charset = "utf-8"
    async with aclosing(pieces):
        return await send_stream(request, response, pieces)


def _accepted(accepted: Import) -> web.Response:
    return json_response(accepted, status=202, headers={"Location": f"/imports/{accepted.id}"})


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
