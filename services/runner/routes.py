"""The runner's HTTP interface: runs, their logs and outputs."""

from urllib.parse import quote

from aiohttp import web
from pydantic import Field

from libs.common.api import Answer, Content, Header, Kind, operation
from libs.common.auth import Scope
from libs.common.database import Connection
from libs.common.idempotency import IDEMPOTENCY_ERRORS, IDEMPOTENCY_KEY, Claim, once
from libs.common.models import Attempt, Output, Page, Request, Run, RunRequest, RunState
from libs.common.openapi import Tag
from libs.common.paging import PageQuery, page_of
from libs.common.web import PRINCIPAL, json_response, origin_of, send_stream
from services.runner.acceptance import Acceptance, require_named
from services.runner.catalogue import Catalogue
from services.runner.lifecycle import Lifecycle
from services.runner.logs import RunLogs
from services.runner.output_store import RecordedOutput
from services.runner.resources import run_resource
from services.runner.store import RunFilter, RunRecord
from services.runner.worker import Stopping

ACCEPTANCE = web.AppKey("acceptance", Acceptance)
CATALOGUE = web.AppKey("catalogue", Catalogue)
LIFECYCLE = web.AppKey("lifecycle", Lifecycle)
LOGS = web.AppKey("logs", RunLogs)
STOPPING = web.AppKey("stopping", Stopping)

TAGS = (
    Tag("Runs", "Executions of a job or a bundle: each pinned to a digest.", ("runs",)),
    Tag("Workflow runs", "Executions of a workflow: each a set of runs.", ("workflows", "workflow-runs")),
)
"""The groups of routes in the reference."""

_ACTIVE_TYPES = {"text/html", "image/svg+xml", "application/xhtml+xml", "text/xml", "application/xml"}


_LOCATION = Header("Location", "The run.", "/runs/run_019aa5c3e1f200112233445566778899")
_ETAG = Header("ETag", "The digest of the file.", f'"sha256:{"9f" * 32}"')
_IF_NONE_MATCH = Header("If-None-Match", "Digests that the caller has: 304 for these.", f'"sha256:{"9f" * 32}"')
_LOG = Content(("text/plain",), "The log, as UTF-8.", "loading 24 partitions\ndone\n")
_FILE = Content(("*/*",), "The file, with the content type that its name suggests.")


REFERENCE_ERRORS: list[Kind] = [
    *((422, kind) for kind in ("invalid-request", "unprocessable", "invalid-reference", "job-not-found")),
    *((422, kind) for kind in ("bundle-not-found", "version-not-found", "digest-not-found", "artifact-not-found")),
    "version-deprecated",
    "version-yanked",
    "version-quarantined",
    "too-large",
    "queue-full",
]
"""What may be wrong where something at the registry is to be run."""


class RunsQuery(PageQuery):
    """Which runs."""

    state: RunState | None = None
    bundle: str | None = None
    job: str | None = None
    workflow_run: str | None = None


class LogQuery(Request):
    """Which part of a log."""

    after: int = Field(0, ge=0, le=2**53, description="What follows this line.")
    follow: bool = Field(default=False, description="Go on until the run has ended.")


@operation(
    Scope.RUNS_WRITE,
    by_slug=True,
    answers={202: Answer(Run, "It is accepted, and queued.", (_LOCATION,))},
    errors=[*REFERENCE_ERRORS, "invalid-concurrency-key", *IDEMPOTENCY_ERRORS],
    headers=[IDEMPOTENCY_KEY],
)
async def post_run(request: web.Request, body: RunRequest) -> web.StreamResponse:
    """Run a bundle or a job.

    It is pinned to a digest when it is accepted: a replacement after that changes nothing for it.
    """

    require_named(body, request[PRINCIPAL])  # an answer that was kept is not for every token of the subject

    async def work(claim: Claim) -> web.Response:
        async def conclude(connection: Connection, run: RunRecord) -> None:
            await claim.keep(connection, _accepted(run))

        return _accepted(
            await request.app[ACCEPTANCE].accept(body, request[PRINCIPAL], origin_of(request), conclude=conclude)
        )

    return await once(request, body, work)


@operation(Scope.RUNS_READ, answers={200: Page[Run]}, errors=["invalid-cursor"])
async def get_runs(request: web.Request, query: RunsQuery) -> web.StreamResponse:
    """List runs, newest first."""
    wanted = query.wanted()
    asked = RunFilter(query.state, query.bundle, query.job, query.workflow_run)
    found = await request.app[CATALOGUE].runs(asked, before=wanted.key, limit=wanted.limit + 1)
    return json_response(page_of(found, wanted, run_resource, lambda run: run.id))


@operation(Scope.RUNS_READ, answers={200: Run}, errors=["not-found"])
async def get_run(request: web.Request) -> web.StreamResponse:
    """Get a run.

    Its state, digest, result or error, and timings.
    """
    return json_response(run_resource(await request.app[CATALOGUE].run(request.match_info["id"])))


@operation(
    Scope.RUNS_WRITE,
    by_slug=True,
    answers={202: Answer(Run, "It has been asked to stop.")},
    errors=["not-found", "conflict"],
)
async def post_cancel(request: web.Request) -> web.StreamResponse:
    """Ask a run to stop."""
    run_id = request.match_info["id"]
    request[PRINCIPAL].require(Scope.RUNS_WRITE, (await request.app[CATALOGUE].run(run_id)).slug)
    await request.app[LIFECYCLE].cancel(run_id, origin_of(request))
    return json_response(run_resource(await request.app[CATALOGUE].run(run_id)), status=202)


@operation(Scope.RUNS_READ, answers={200: _LOG}, errors=["not-found", "log-missing"])
async def get_log(request: web.Request, query: LogQuery) -> web.StreamResponse:
    """Read the log of a run."""
    run_id = request.match_info["id"]
    logs, stopping = request.app[LOGS], request.app[STOPPING]
    await logs.require(run_id)
    lines = logs.text(run_id, after=query.after, follow=query.follow, closing=stopping.closing.is_set)
    response = web.StreamResponse(headers={"Content-Type": "text/plain; charset=utf-8"})
    return await send_stream(request, response, lines)


@operation(Scope.RUNS_READ, answers={200: Page[Attempt]}, errors=["not-found", "invalid-cursor"])
async def get_attempts(request: web.Request, query: PageQuery) -> web.StreamResponse:
    """List the attempts at a run, in order."""
    wanted = query.wanted(int)
    found = await request.app[CATALOGUE].attempts(
        request.match_info["id"], after=wanted.key or 0, limit=wanted.limit + 1
    )
    return json_response(page_of(found, wanted, Attempt.model_validate, lambda attempt: attempt.number))


@operation(Scope.RUNS_READ, answers={200: Page[Output]}, errors=["not-found", "invalid-cursor"])
async def get_outputs(request: web.Request, query: PageQuery) -> web.StreamResponse:
    """List the files that a run left, by path."""
    wanted = query.wanted()
    found = await request.app[CATALOGUE].outputs(request.match_info["id"], after=wanted.key, limit=wanted.limit + 1)
    return json_response(page_of(found, wanted, Output.model_validate, lambda output: output.path))


@operation(
    Scope.RUNS_READ,
    answers={200: Answer(_FILE, None, (_ETAG,)), 304: Answer(None, "The caller has it already.", (_ETAG,))},
    errors=["not-found", "output-missing"],
    headers=[_IF_NONE_MATCH],
)
async def get_output(request: web.Request) -> web.StreamResponse:
    """Get a file that a run left."""
    run_id, catalogue = request.match_info["id"], request.app[CATALOGUE]
    output = await catalogue.output(run_id, request.match_info["path"])
    headers = _output_headers(output)
    if headers["ETag"] in (tag.strip() for tag in request.headers.get("If-None-Match", "").split(",")):
        return web.Response(status=304, headers={"ETag": headers["ETag"]})
    async with catalogue.open_output(output) as opened:
        return await send_stream(request, web.StreamResponse(headers=headers), opened.chunks)


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


def _accepted(run: RunRecord) -> web.Response:
    return json_response(run_resource(run), status=202, headers={"Location": f"/runs/{run.id}"})


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
