"""The runner's HTTP interface: runs, their logs and outputs."""

from collections.abc import AsyncIterator, Mapping
from urllib.parse import quote

from aiohttp import web
from pydantic import Field

from libs.common.auth import Scope
from libs.common.cursors import decode_cursor
from libs.common.models import Attempt, Output, Request, RunRequest, RunState
from libs.common.paging import Wanted, page_of
from libs.common.web import json_response, origin_of, read_model, read_query, requires
from services.runner.acceptance import Acceptance
from services.runner.catalogue import Catalogue
from services.runner.lifecycle import Lifecycle
from services.runner.logs import RunLogs
from services.runner.output_store import RecordedOutput
from services.runner.resources import run_resource
from services.runner.store import RunFilter
from services.runner.worker import Stopping

ACCEPTANCE = web.AppKey("acceptance", Acceptance)
CATALOGUE = web.AppKey("catalogue", Catalogue)
LIFECYCLE = web.AppKey("lifecycle", Lifecycle)
LOGS = web.AppKey("logs", RunLogs)
STOPPING = web.AppKey("stopping", Stopping)

_ACTIVE_TYPES = {"text/html", "image/svg+xml", "application/xhtml+xml", "text/xml", "application/xml"}


class PageQuery(Request):
    """Which part of a list."""

    limit: int = Field(50, ge=1, le=500)
    cursor: str | None = None

    def wanted(self, kind: type[str] | type[int] = str) -> Wanted:
        """The page that is asked for, of a list whose keys are of `kind`."""
        return Wanted(decode_cursor(self.cursor, kind)[0] if self.cursor else None, self.limit)


class RunsQuery(PageQuery):
    """Which runs."""

    state: RunState | None = None
    bundle: str | None = None
    job: str | None = None
    workflow_run: str | None = None


class LogQuery(Request):
    """Which part of a log: what follows line `after`, and with `follow` also what is still to come."""

    after: int = Field(0, ge=0, le=2**53)
    follow: bool = False


@requires(Scope.RUNS_WRITE)
async def post_run(request: web.Request) -> web.StreamResponse:
    """Accept a run."""
    wanted = await read_model(request, RunRequest)
    key = request.headers.get("Idempotency-Key")
    accepted = await request.app[ACCEPTANCE].accept(wanted, origin_of(request), idempotency_key=key)
    headers = {"Location": f"/runs/{accepted.run.id}"}
    return json_response(run_resource(accepted.run), status=202 if accepted.is_new else 200, headers=headers)


@requires(Scope.RUNS_READ)
async def get_runs(request: web.Request) -> web.StreamResponse:
    """Runs, newest first."""
    query = read_query(request, RunsQuery)
    wanted = query.wanted()
    asked = RunFilter(query.state, query.bundle, query.job, query.workflow_run)
    found = await request.app[CATALOGUE].runs(asked, before=wanted.key, limit=wanted.limit + 1)
    return json_response(page_of(found, wanted, run_resource, lambda run: run.id))


@requires(Scope.RUNS_READ)
async def get_run(request: web.Request) -> web.StreamResponse:
    """A run."""
    return json_response(run_resource(await request.app[CATALOGUE].run(request.match_info["id"])))


@requires(Scope.RUNS_WRITE)
async def post_cancel(request: web.Request) -> web.StreamResponse:
    """End a run."""
    run_id = request.match_info["id"]
    await request.app[LIFECYCLE].cancel(run_id, origin_of(request))
    return json_response(run_resource(await request.app[CATALOGUE].run(run_id)), status=202)


@requires(Scope.RUNS_READ)
async def get_log(request: web.Request) -> web.StreamResponse:
    """The log of a run as text."""
    run_id, query = request.match_info["id"], read_query(request, LogQuery)
    logs, stopping = request.app[LOGS], request.app[STOPPING]
    await logs.require(run_id)
    lines = logs.text(run_id, after=query.after, follow=query.follow, closing=stopping.draining.is_set)
    return await _stream(request, lines, {"Content-Type": "text/plain; charset=utf-8"})


@requires(Scope.RUNS_READ)
async def get_attempts(request: web.Request) -> web.StreamResponse:
    """The attempts at a run, in order."""
    query = read_query(request, PageQuery)
    wanted = query.wanted(int)
    found = await request.app[CATALOGUE].attempts(
        request.match_info["id"], after=wanted.key or 0, limit=wanted.limit + 1
    )
    return json_response(page_of(found, wanted, Attempt.model_validate, lambda attempt: attempt.number))


@requires(Scope.RUNS_READ)
async def get_outputs(request: web.Request) -> web.StreamResponse:
    """The outputs of a run, by path."""
    wanted = read_query(request, PageQuery).wanted()
    found = await request.app[CATALOGUE].outputs(request.match_info["id"], after=wanted.key, limit=wanted.limit + 1)
    return json_response(page_of(found, wanted, Output.model_validate, lambda output: output.path))


@requires(Scope.RUNS_READ)
async def get_output(request: web.Request) -> web.StreamResponse:
    """The bytes of an output."""
    run_id, catalogue = request.match_info["id"], request.app[CATALOGUE]
    output = await catalogue.output(run_id, request.match_info["path"])
    headers = _output_headers(output)
    if headers["ETag"] in (tag.strip() for tag in request.headers.get("If-None-Match", "").split(",")):
        return web.Response(status=304, headers={"ETag": headers["ETag"]})
    async with catalogue.open_output(output) as opened:
        return await _stream(request, opened.chunks, headers)


def routes() -> list[web.RouteDef]:
    """The routes of runs."""
    return [
        web.post("/runs", post_run),
        web.get("/runs", get_runs),
        web.get("/runs/{id}", get_run),
        web.post("/runs/{id}/cancel", post_cancel),
        web.get("/runs/{id}/log", get_log),
        web.get("/runs/{id}/attempts", get_attempts),
        web.get("/runs/{id}/outputs", get_outputs),
        web.get("/runs/{id}/outputs/{path:.+}", get_output),
    ]


def _output_headers(output: RecordedOutput) -> dict[str, str]:
    name = output.path.rpartition("/")[2]
    is_text = output.content_type.startswith("text/") and "charset" not in output.content_type
    headers = {
        "Content-Type": f"{output.content_type}; charset=utf-8" if is_text else output.content_type,
        "Content-Length": str(output.size),
        "Content-Disposition": f"inline; filename*=UTF-8''{quote(name, safe='')}",
        "ETag": f'"{output.digest}"',
        "X-Content-Type-Options": "nosniff",
    }
    if output.content_type in _ACTIVE_TYPES:
        # A job wrote it: it may be looked at, but its scripts have no business on this origin.
        headers["Content-Security-Policy"] = "sandbox"
    return headers


async def _stream(request: web.Request, chunks: AsyncIterator[bytes], headers: Mapping[str, str]) -> web.StreamResponse:
    response = web.StreamResponse(headers=headers)
    await response.prepare(request)
    async for chunk in chunks:
        await response.write(chunk)
    await response.write_eof()
    return response
