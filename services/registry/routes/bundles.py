"""Reading what is published, and deprecating it."""

from aiohttp import web

from libs.common import models
from libs.common.auth import Scope
from libs.common.errors import InvalidRequest
from libs.common.paging import page_of, read_page
from libs.common.web import json_response, origin_of, read_model, requires
from services.registry import catalog
from services.registry.resources import POOL
from services.registry.store.artifacts import File


@requires(Scope.BUNDLES_READ)
async def list_bundles(request: web.Request) -> web.Response:
    """GET /job-bundles"""
    wanted = read_page(request)
    rows = await catalog.list_bundles(request.app[POOL], after=wanted.key, limit=wanted.limit + 1)
    return json_response(page_of(rows, wanted, models.Bundle.model_validate, lambda row: row.slug))


@requires(Scope.BUNDLES_READ)
async def get_bundle(request: web.Request) -> web.Response:
    """GET /job-bundles/{slug}"""
    bundle = await catalog.get_bundle(request.app[POOL], request.match_info["slug"])
    return json_response(models.Bundle.model_validate(bundle))


@requires(Scope.BUNDLES_READ)
async def list_versions(request: web.Request) -> web.Response:
    """GET /job-bundles/{slug}/versions"""
    wanted = read_page(request)
    slug = request.match_info["slug"]
    rows = await catalog.list_versions(request.app[POOL], slug, below=wanted.key, limit=wanted.limit + 1)
    return json_response(page_of(rows, wanted, models.Version.model_validate, lambda row: row.sort_key))


@requires(Scope.BUNDLES_READ)
async def get_version(request: web.Request) -> web.Response:
    """GET /job-bundles/{slug}/versions/{version}"""
    version = await catalog.get_version(request.app[POOL], *_names(request))
    return json_response(models.Version.model_validate(version))


@requires(Scope.BUNDLES_PUBLISH)
async def patch_version(request: web.Request) -> web.Response:
    """PATCH /job-bundles/{slug}/versions/{version}"""
    patch = await read_model(request, models.VersionPatch)
    version = await catalog.patch_version(request.app[POOL], *_names(request), patch, origin_of(request))
    return json_response(models.Version.model_validate(version))


@requires(Scope.BUNDLES_READ)
async def list_revisions(request: web.Request) -> web.Response:
    """GET /job-bundles/{slug}/versions/{version}/revisions"""
    wanted = read_page(request, int)
    rows = await catalog.list_revisions(request.app[POOL], *_names(request), below=wanted.key, limit=wanted.limit + 1)
    return json_response(page_of(rows, wanted, models.Revision.model_validate, lambda row: row.revision))


@requires(Scope.BUNDLES_READ)
async def list_files(request: web.Request) -> web.Response:
    """GET /job-bundles/{slug}/versions/{version}/files"""
    wanted = read_page(request)
    rows = await catalog.list_files(request.app[POOL], *_names(request), after=wanted.key, limit=wanted.limit + 1)
    return json_response(page_of(rows, wanted, _file, lambda row: row.path))


@requires(Scope.BUNDLES_READ)
async def resolve(request: web.Request) -> web.Response:
    """GET /job-bundles/{slug}/resolve?reference="""
    reference = request.query.get("reference")
    if not reference:
        raise InvalidRequest("the parameter reference is missing: latest, a version, or a digest sha256:…")
    resolved = await catalog.resolve(request.app[POOL], request.match_info["slug"], reference)
    return json_response(models.Resolution.model_validate(resolved))


@requires(Scope.BUNDLES_READ)
async def get_artifact(request: web.Request) -> web.Response:
    """GET /artifacts/{digest}"""
    artifact = await catalog.get_artifact(request.app[POOL], request.match_info["digest"])
    return json_response(models.Artifact.model_validate(artifact))


def _names(request: web.Request) -> tuple[str, str]:
    return request.match_info["slug"], request.match_info["version"]


def _file(file: File) -> models.FileEntry:
    return models.FileEntry(
        path=file.path,
        type=file.type,
        size=file.size,
        mode=f"{file.mode:04o}",
        digest=f"sha256:{file.digest.hex()}" if file.digest else None,
        link_target=file.link_target,
    )


ROUTES = (
    web.get("/job-bundles", list_bundles),
    web.get("/job-bundles/{slug}", get_bundle),
    web.get("/job-bundles/{slug}/resolve", resolve),
    web.get("/job-bundles/{slug}/versions", list_versions),
    web.get("/job-bundles/{slug}/versions/{version}", get_version),
    web.patch("/job-bundles/{slug}/versions/{version}", patch_version),
    web.get("/job-bundles/{slug}/versions/{version}/revisions", list_revisions),
    web.get("/job-bundles/{slug}/versions/{version}/files", list_files),
    web.get("/artifacts/{digest}", get_artifact),
)
