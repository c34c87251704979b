"""What may be done with versions, and what holds for bundles, over HTTP."""

from aiohttp import web

from libs.common import models
from libs.common.api import operation
from libs.common.auth import Scope
from libs.common.web import PRINCIPAL, json_response, origin_of
from services.registry import standing
from services.registry.resources import POOL


@operation(
    Scope.BUNDLES_PUBLISH,
    answers={200: models.Bundle},
    errors=["bundle-not-found", "nothing-to-change", "invalid-platform"],
)
async def patch_bundle(request: web.Request, body: models.BundlePatch) -> web.Response:
    """Change a bundle.

    Its names, whether it is immutable, for which platforms it may be published.
    Only an administrator may change `allowedPlatforms`, or take `immutable` back.
    """
    slug = request.match_info["slug"]
    bundle = await standing.patch_bundle(request.app[POOL], slug, body, request[PRINCIPAL], origin_of(request))
    return json_response(models.Bundle.model_validate(bundle))


@operation(
    Scope.BUNDLES_PUBLISH,
    answers={200: models.Version},
    errors=["bundle-not-found", "version-not-found", "nothing-to-change", "reason-required"],
)
async def patch_version(request: web.Request, body: models.VersionPatch) -> web.Response:
    """Change the standing of a version.

    Deprecate, yank or quarantine it, or offer it again; make it immutable.
    Only an administrator may put a version into quarantine, take it out of it, or take `immutable` back.
    """
    slug, version = request.match_info["slug"], request.match_info["version"]
    patched = await standing.patch_version(
        request.app[POOL], slug, version, body, request[PRINCIPAL], origin_of(request)
    )
    return json_response(models.Version.model_validate(patched))


ROUTES = (
    web.patch("/job-bundles/{slug}", patch_bundle),
    web.patch("/job-bundles/{slug}/versions/{version}", patch_version),
)
