"""Jobs and workflows over HTTP."""

from aiohttp import web

from libs.common import models
from libs.common.auth import Scope
from libs.common.paging import page_of, read_page
from libs.common.web import json_response, origin_of, read_model, requires
from services.registry import definitions
from services.registry.resources import POOL
from services.registry.store.definitions import Kind


@requires(Scope.BUNDLES_PUBLISH)
async def put_job(request: web.Request) -> web.Response:
    """PUT /jobs/{slug}"""
    body = await read_model(request, models.JobDefinition)
    created, job = await definitions.put_job(request.app[POOL], request.match_info["slug"], body, origin_of(request))
    return json_response(models.Job.model_validate(job), status=201 if created else 200)


@requires(Scope.BUNDLES_READ)
async def get_job(request: web.Request) -> web.Response:
    """GET /jobs/{slug}"""
    job = await definitions.get(request.app[POOL], Kind.JOB, request.match_info["slug"])
    return json_response(models.Job.model_validate(job))


@requires(Scope.BUNDLES_READ)
async def list_jobs(request: web.Request) -> web.Response:
    """GET /jobs"""
    wanted = read_page(request)
    rows = await definitions.list_page(request.app[POOL], Kind.JOB, after=wanted.key, limit=wanted.limit + 1)
    return json_response(page_of(rows, wanted, models.Job.model_validate, lambda row: row.slug))


@requires(Scope.BUNDLES_PUBLISH)
async def put_workflow(request: web.Request) -> web.Response:
    """PUT /workflows/{slug}"""
    body = await read_model(request, models.WorkflowDefinition)
    created, workflow = await definitions.put_workflow(
        request.app[POOL], request.match_info["slug"], body, origin_of(request)
    )
    return json_response(models.Workflow.model_validate(workflow), status=201 if created else 200)


@requires(Scope.BUNDLES_READ)
async def get_workflow(request: web.Request) -> web.Response:
    """GET /workflows/{slug}"""
    workflow = await definitions.get(request.app[POOL], Kind.WORKFLOW, request.match_info["slug"])
    return json_response(models.Workflow.model_validate(workflow))


@requires(Scope.BUNDLES_READ)
async def list_workflows(request: web.Request) -> web.Response:
    """GET /workflows"""
    wanted = read_page(request)
    rows = await definitions.list_page(request.app[POOL], Kind.WORKFLOW, after=wanted.key, limit=wanted.limit + 1)
    return json_response(page_of(rows, wanted, models.Workflow.model_validate, lambda row: row.slug))


ROUTES = (
    web.get("/jobs", list_jobs),
    web.get("/jobs/{slug}", get_job),
    web.put("/jobs/{slug}", put_job),
    web.get("/workflows", list_workflows),
    web.get("/workflows/{slug}", get_workflow),
    web.put("/workflows/{slug}", put_workflow),
)
