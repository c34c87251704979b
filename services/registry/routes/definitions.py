"""Jobs and workflows over HTTP."""

from aiohttp import web

from libs.common import models
from libs.common.api import Answer, operation
from libs.common.auth import Scope
from libs.common.paging import PageQuery, page_of
from libs.common.web import PRINCIPAL, json_response, origin_of
from services.registry import definitions
from services.registry.resources import POOL
from services.registry.store.definitions import Kind


@operation(
    Scope.BUNDLES_PUBLISH,
    answers={200: Answer(models.Job, "It was there; the revision says whether it has changed."), 201: models.Job},
    errors=["invalid-reference", "invalid-concurrency-key"],
)
async def put_job(request: web.Request, body: models.JobDefinition) -> web.Response:
    """Create or update a job.

    Its bundle need not be published yet. To put what is there already changes nothing.
    """
    created, job = await definitions.put_job(request.app[POOL], request.match_info["slug"], body, origin_of(request))
    return json_response(models.Job.model_validate(job), status=201 if created else 200)


@operation(Scope.BUNDLES_READ, answers={200: models.Job}, errors=["job-not-found"])
async def get_job(request: web.Request) -> web.Response:
    """Get a job."""
    job = await definitions.get(request.app[POOL], Kind.JOB, request.match_info["slug"])
    return json_response(models.Job.model_validate(job))


@operation(Scope.BUNDLES_READ, by_slug=True, answers={200: models.Page[models.Job]}, errors=["invalid-cursor"])
async def list_jobs(request: web.Request, query: PageQuery) -> web.Response:
    """List jobs by slug: those that the token may read."""
    wanted, readable = query.wanted(), request[PRINCIPAL].patterns(Scope.BUNDLES_READ)
    rows = await definitions.list_page(request.app[POOL], Kind.JOB, readable, after=wanted.key, limit=wanted.limit + 1)
    return json_response(page_of(rows, wanted, models.Job.model_validate, lambda row: row.slug))


@operation(
    Scope.BUNDLES_PUBLISH,
    answers={
        200: Answer(models.Workflow, "It was there; the revision says whether it has changed."),
        201: models.Workflow,
    },
    errors=["invalid-workflow"],
)
async def put_workflow(request: web.Request, body: models.WorkflowDefinition) -> web.Response:
    """Create or update a workflow.

    Its jobs need not be defined yet. To put what is there already changes nothing.
    """
    created, workflow = await definitions.put_workflow(
        request.app[POOL], request.match_info["slug"], body, origin_of(request)
    )
    return json_response(models.Workflow.model_validate(workflow), status=201 if created else 200)


@operation(Scope.BUNDLES_READ, answers={200: models.Workflow}, errors=["workflow-not-found"])
async def get_workflow(request: web.Request) -> web.Response:
    """Get a workflow."""
    workflow = await definitions.get(request.app[POOL], Kind.WORKFLOW, request.match_info["slug"])
    return json_response(models.Workflow.model_validate(workflow))


@operation(Scope.BUNDLES_READ, by_slug=True, answers={200: models.Page[models.Workflow]}, errors=["invalid-cursor"])
async def list_workflows(request: web.Request, query: PageQuery) -> web.Response:
    """List workflows by slug: those that the token may read."""
    wanted, readable = query.wanted(), request[PRINCIPAL].patterns(Scope.BUNDLES_READ)
    rows = await definitions.list_page(
        request.app[POOL], Kind.WORKFLOW, readable, after=wanted.key, limit=wanted.limit + 1
    )
    return json_response(page_of(rows, wanted, models.Workflow.model_validate, lambda row: row.slug))


ROUTES = (
    web.get("/jobs", list_jobs),
    web.get("/jobs/{slug}", get_job),
    web.put("/jobs/{slug}", put_job),
    web.get("/workflows", list_workflows),
    web.get("/workflows/{slug}", get_workflow),
    web.put("/workflows/{slug}", put_workflow),
)
