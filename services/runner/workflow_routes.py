"""The runner's HTTP interface: workflow runs."""

from aiohttp import web

from libs.common.auth import Scope
from libs.common.models import WorkflowRunRequest, WorkflowRunState
from libs.common.paging import page_of
from libs.common.web import json_response, origin_of, read_model, read_query, requires
from services.runner.resources import workflow_run_resource
from services.runner.routes import CATALOGUE, LIFECYCLE, PageQuery
from services.runner.workflow_store import WorkflowRunFilter
from services.runner.workflows import WorkflowAcceptance

WORKFLOW_ACCEPTANCE = web.AppKey("workflow_acceptance", WorkflowAcceptance)


class WorkflowRunsQuery(PageQuery):
    """Which workflow runs."""

    workflow: str | None = None
    state: WorkflowRunState | None = None


@requires(Scope.RUNS_WRITE)
async def post_workflow_run(request: web.Request) -> web.StreamResponse:
    """Start a workflow."""
    wanted = await read_model(request, WorkflowRunRequest)
    view = await request.app[WORKFLOW_ACCEPTANCE].accept(
        request.match_info["slug"], wanted.parameters, origin_of(request)
    )
    location = {"Location": f"/workflow-runs/{view.run.id}"}
    return json_response(workflow_run_resource(view), status=202, headers=location)


@requires(Scope.RUNS_READ)
async def get_workflow_runs(request: web.Request) -> web.StreamResponse:
    """Workflow runs, newest first."""
    query = read_query(request, WorkflowRunsQuery)
    wanted = query.wanted()
    asked = WorkflowRunFilter(query.workflow, query.state)
    found = await request.app[CATALOGUE].workflow_runs(asked, before=wanted.key, limit=wanted.limit + 1)
    return json_response(page_of(found, wanted, workflow_run_resource, lambda view: view.run.id))


@requires(Scope.RUNS_READ)
async def get_workflow_run(request: web.Request) -> web.StreamResponse:
    """A workflow run and its steps."""
    return json_response(workflow_run_resource(await request.app[CATALOGUE].workflow_run(request.match_info["id"])))


@requires(Scope.RUNS_WRITE)
async def post_cancel(request: web.Request) -> web.StreamResponse:
    """End a workflow run."""
    identifier = request.match_info["id"]
    await request.app[LIFECYCLE].cancel_workflow_run(identifier, origin_of(request))
    return json_response(workflow_run_resource(await request.app[CATALOGUE].workflow_run(identifier)), status=202)


def routes() -> list[web.RouteDef]:
    """The routes of workflow runs."""
    return [
        web.post("/workflows/{slug}/runs", post_workflow_run),
        web.get("/workflow-runs", get_workflow_runs),
        web.get("/workflow-runs/{id}", get_workflow_run),
        web.post("/workflow-runs/{id}/cancel", post_cancel),
    ]
