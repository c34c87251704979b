"""Reading what is published."""

from aiohttp import web
from pydantic import Field

from libs.common import models
from libs.common.api import operation
from libs.common.auth import Scope
from libs.common.paging import PageQuery, page_of
from libs.common.web import PRINCIPAL, json_response
from services.registry import availability, catalog
from services.registry.resources import POOL, RESOLUTIONS
from services.registry.store.artifacts import File

_NO_VERSION = ["bundle-not-found", "version-not-found"]
_NO_ARTIFACT = ["artifact-not-found", "artifact-collected", "artifact-quarantined"]


class ResolveQuery(models.Request):
    """What is to be resolved."""

    reference: str = Field(min_length=1, description="`latest`, a version, or a digest `sha256:…`.")


@operation(Scope.BUNDLES_READ, by_slug=True, answers={200: models.Page[models.Bundle]}, errors=["invalid-cursor"])
async def list_bundles(request: web.Request, query: PageQuery) -> web.Response:
    """List bundles by slug.

    Those that the token may read.
    """
    wanted, readable = query.wanted(), request[PRINCIPAL].patterns(Scope.BUNDLES_READ)
    rows = await catalog.list_bundles(request.app[POOL], readable, after=wanted.key, limit=wanted.limit + 1)
    return json_response(page_of(rows, wanted, models.Bundle.model_validate, lambda row: row.slug))


@operation(Scope.BUNDLES_READ, answers={200: models.Bundle}, errors=["bundle-not-found"])
async def get_bundle(request: web.Request) -> web.Response:
    """Get a bundle.

    `latest` is its highest active release.
    """
    bundle = await catalog.get_bundle(request.app[POOL], request.match_info["slug"])
    return json_response(models.Bundle.model_validate(bundle))


@operation(
    Scope.BUNDLES_READ, answers={200: models.Page[models.Version]}, errors=["bundle-not-found", "invalid-cursor"]
)
async def list_versions(request: web.Request, query: PageQuery) -> web.Response:
    """List the versions of a bundle, highest first."""
    wanted = query.wanted()
    slug = request.match_info["slug"]
    rows = await catalog.list_versions(request.app[POOL], slug, below=wanted.key, limit=wanted.limit + 1)
    return json_response(page_of(rows, wanted, models.Version.model_validate, lambda row: row.sort_key))


@operation(Scope.BUNDLES_READ, answers={200: models.Version}, errors=_NO_VERSION)
async def get_version(request: web.Request) -> web.Response:
    """Get a version, or `latest`."""
    version = await catalog.get_version(request.app[POOL], *_names(request))
    return json_response(models.Version.model_validate(version))


@operation(Scope.BUNDLES_READ, answers={200: models.Page[models.Revision]}, errors=[*_NO_VERSION, "invalid-cursor"])
async def list_revisions(request: web.Request, query: PageQuery) -> web.Response:
    """List every publication of a version, newest first."""
    wanted = query.wanted(int)
    rows = await catalog.list_revisions(request.app[POOL], *_names(request), below=wanted.key, limit=wanted.limit + 1)
    return json_response(page_of(rows, wanted, models.Revision.model_validate, lambda row: row.revision))


@operation(Scope.BUNDLES_READ, answers={200: models.Page[models.FileEntry]}, errors=[*_NO_VERSION, "invalid-cursor"])
async def list_files(request: web.Request, query: PageQuery) -> web.Response:
    """List the members of a version by path."""
    wanted = query.wanted()
    rows = await catalog.list_files(request.app[POOL], *_names(request), after=wanted.key, limit=wanted.limit + 1)
    return json_response(page_of(rows, wanted, _file, lambda row: row.path))


@operation(
    Scope.BUNDLES_READ,
    answers={200: models.Resolution},
    errors=[*_NO_VERSION, "digest-not-found", *_NO_ARTIFACT],
)
async def resolve(request: web.Request, query: ResolveQuery) -> web.Response:
    """Resolve a reference.

    What `latest`, a version or a digest means right now, with the artifact. A digest stands for the newest revision
    that is or was this artifact, whatever replaced it since.
    """
    resolved = await catalog.resolve(request.app[POOL], request.match_info["slug"], query.reference)
    return request.app[RESOLUTIONS].answer(resolved.identity, lambda: models.Resolution.model_validate(resolved))


@operation(Scope.BUNDLES_READ, by_slug=True, answers={200: models.Artifact}, errors=_NO_ARTIFACT)
async def get_artifact(request: web.Request) -> web.Response:
    """Get an artifact.

    Its sizes, manifest, platforms, and native files with their paths.

    410 where it was collected, 409 where it is quarantined. There is none for a token that may read no bundle that has
    or had it.
    """
    readable = request[PRINCIPAL].patterns(Scope.BUNDLES_READ)
    artifact = await catalog.get_artifact(request.app[POOL], request.match_info["digest"], readable)
    return json_response(models.Artifact.model_validate(artifact))


@operation(Scope.BUNDLES_READ, by_slug=True, answers={200: models.ArtifactUsesNoted})
async def note_uses(request: web.Request, body: models.ArtifactUses) -> web.Response:
    """Note that runs which have not ended use these artifacts, so that they are kept."""
    readable = request[PRINCIPAL].patterns(Scope.BUNDLES_READ)
    unavailable = await availability.note_uses(request.app[POOL], body.digests, readable)
    return json_response(models.ArtifactUsesNoted(unavailable=unavailable))


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
    web.get("/job-bundles/{slug}/versions/{version}/revisions", list_revisions),
    web.get("/job-bundles/{slug}/versions/{version}/files", list_files),
    web.get("/artifacts/{digest:(?!uses$)[^/]+}", get_artifact),
    web.post("/artifacts/uses", note_uses),
)
