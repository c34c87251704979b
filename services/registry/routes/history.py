"""Going back to what a version was."""

from aiohttp import web

from libs.common import models
from libs.common.api import Answer, operation
from libs.common.auth import Scope
from libs.common.errors import InvalidRequest
from libs.common.identifiers import check_digest, check_slug, check_version
from libs.common.web import PRINCIPAL, json_response, origin_of
from services.registry.resources import RESTORER
from services.registry.rollback import Rollback
from services.registry.verdict import Proposal


@operation(
    Scope.BUNDLES_PUBLISH,
    answers={200: Answer(models.Version, "It is what it was; or nothing has changed, because it is that already.")},
    errors=[
        "bundle-not-found",
        "version-not-found",
        "revision-not-found",
        "digest-not-found",
        "reason-required",
        "version-immutable",
        "bundle-immutable",
        "version-quarantined",
        "stale-digest",
        "artifact-lost",
        "artifact-collected",
        "artifact-quarantined",
        "object-store-unavailable",
    ],
)
async def roll_back(request: web.Request, body: models.RollbackRequest) -> web.Response:
    """Point a version at an artifact that it was.

    Adds a revision, as a replacement does, and needs the scope `bundles:force` as well, and a `reason`.
    """
    proposal = Proposal(
        check_slug(request.match_info["slug"]),
        check_version(request.match_info["version"]),
        force=True,
        expected_digest=check_digest(body.expected_digest) if body.expected_digest is not None else None,
        reason=(body.reason or "").strip() or None,
    )
    rollback = Rollback(proposal, _target(body), request[PRINCIPAL], origin_of(request))
    version = await request.app[RESTORER].roll_back(rollback)
    return json_response(models.Version.model_validate(version))


def _target(body: models.RollbackRequest) -> int | str:
    match body.to_revision, body.to_digest:
        case int(revision), None:
            return revision
        case None, str(digest):
            return check_digest(digest)
        case _:
            raise InvalidRequest(
                "a rollback goes to exactly one of toRevision, a number, and toDigest, which the version was."
            )


ROUTES = (web.post("/job-bundles/{slug}/versions/{version}/rollback", roll_back),)
