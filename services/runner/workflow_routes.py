"""The runner's HTTP interface: workflow runs."""

from aiohttp import web

from libs.common.api import Answer, Header, operation
from libs.common.auth import Scope
from libs.common.database import Connection
from libs.common.idempotency import IDEMPOTENCY_ERRORS, IDEMPOTENCY_KEY, Claim, once
from libs.common.models import Page, WorkflowRun, WorkflowRunRequest, WorkflowRunState
from libs.common.paging import PageQuery, page_of
from libs.common.web import PRINCIPAL, json_response, origin_of
from services.runner.resources import workflow_run_resource
from services.runner.routes import CATALOGUE, LIFECYCLE, REFERENCE_ERRORS
from services.runner.workflow_store import WorkflowRunFilter
from services.runner.workflows import WorkflowAcceptance, WorkflowRunView

WORKFLOW_ACCEPTANCE = web.AppKey("workflow_acceptance", WorkflowAcceptance)


_LOCATION = Header("Location", "The workflow run.", "/workflow-runs/wfr_019aa5c3e1f200112233445566778899")


class WorkflowRunsQuery(PageQuery):
    """Which workflow runs."""

    workflow: str | None = None
    state: WorkflowRunState | None = None


@operation(
    Scope.RUNS_WRITE,
    answers={202: Answer(WorkflowRun, "It is accepted.", (_LOCATION,))},
    errors=[*REFERENCE_ERRORS, "workflow-not-found", *IDEMPOTENCY_ERRORS],
    headers=[IDEMPOTENCY_KEY],
)
async def post_workflow_run(request: web.Request, body: WorkflowRunRequest) -> web.StreamResponse:
    """Start a workflow."""

    async def work(claim: Claim) -> web.Response:
        async def conclude(connection: Connection, view: WorkflowRunView) -> None:
            await claim.keep(connection, _accepted(view))

        slug, principal = request.match_info["slug"], request[PRINCIPAL]
        return _accepted(
            await request.app[WORKFLOW_ACCEPTANCE].accept(
                slug, body.parameters, principal, origin_of(request), conclude=conclude
            )
        )

    return await once(request, body, work)


@operation(Scope.RUNS_READ, answers={200: Page[WorkflowRun]}, errors=["invalid-cursor"])
async def get_workflow_runs(request: web.Request, query: WorkflowRunsQuery) -> web.StreamResponse:
    """List workflow runs, newest first."""
    wanted = query.wanted()
    asked = WorkflowRunFilter(query.workflow, query.state)
    found = await request.app[CATALOGUE].workflow_runs(asked, before=wanted.key, limit=wanted.limit + 1)
    return json_response(page_of(found, wanted, workflow_run_resource, lambda view: view.run.id))


@operation(Scope.RUNS_READ, answers={200: WorkflowRun}, errors=["not-found"])
async def get_workflow_run(request: web.Request) -> web.StreamResponse:
    """Get a workflow run with each step's run."""
    return json_response(workflow_run_resource(await request.app[CATALOGUE].workflow_run(request.match_info["id"])))


@operation(
    Scope.RUNS_WRITE,
    by_slug=True,
    answers={202: Answer(WorkflowRun, "What was queued or running has been asked to stop.")},
    errors=["not-found", "conflict"],
)
async def post_workflow_cancel(request: web.Request) -> web.StreamResponse:
    """Ask a workflow run to stop."""
    identifier = request.match_info["id"]
    request[PRINCIPAL].require(Scope.RUNS_WRITE, (await request.app[CATALOGUE].workflow_run(identifier)).run.workflow)
    await request.app[LIFECYCLE].cancel_workflow_run(identifier, origin_of(request))
    return json_response(workflow_run_resource(await request.app[CATALOGUE].workflow_run(identifier)), status=202)


def _accepted(view: WorkflowRunView) -> web.Response:
    return json_response(workflow_run_resource(view), status=202, headers={"Location": f"/workflow-runs/{view.run.id}"})


def routes() -> list[web.RouteDef]:
    """The routes of workflow runs."""
    return [
        web.post("/workflows/{slug}/runs", post_workflow_run),
        web.get("/workflow-runs", get_workflow_runs),
        web.get("/workflow-runs/{id}", get_workflow_run),
        web.post("/workflow-runs/{id}/cancel", post_workflow_cancel),
    ]
