"""What became of versions: what differs, and going back."""

from aiohttp import web
from pydantic import Field

from libs.common import models
from libs.common.api import Answer, operation
from libs.common.auth import Scope
from libs.common.database import Connection
from libs.common.errors import InvalidRequest
from libs.common.idempotency import IDEMPOTENCY_ERRORS, IDEMPOTENCY_KEY, Claim, once
from libs.common.identifiers import check_digest, check_slug, check_version
from libs.common.paging import PageQuery
from libs.common.web import PRINCIPAL, json_response, origin_of
from services.registry.resources import DIFFER, RESTORER
from services.registry.rollback import Rollback
from services.registry.store.versions import Version
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
        "platform-not-allowed",
        "artifact-lost",
        "artifact-collected",
        "artifact-quarantined",
        "object-store-unavailable",
        *IDEMPOTENCY_ERRORS,
    ],
    headers=[IDEMPOTENCY_KEY],
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
    target = _target(body)

    async def work(claim: Claim) -> web.Response:
        async def conclude(connection: Connection, version: Version) -> None:
            await claim.keep(connection, json_response(models.Version.model_validate(version)))

        rollback = Rollback(proposal, target, request[PRINCIPAL], origin_of(request), conclude)
        version = await request.app[RESTORER].roll_back(rollback)
        return json_response(models.Version.model_validate(version))

    return await once(request, body, work)


class DiffQuery(PageQuery):
    """What is compared. A page with texts may be shorter than its limit."""

    before: str = Field(alias="from", min_length=1, description="`latest`, a version, `version@rN`, or a digest.")
    after: str = Field(alias="to", min_length=1, description="The same.")
    text: bool = Field(default=False, description="Compare text files by lines, which reads both artifacts.")


@operation(
    Scope.BUNDLES_READ,
    answers={200: models.ArtifactDiff},
    errors=[
        "bundle-not-found",
        "version-not-found",
        "revision-not-found",
        "digest-not-found",
        "invalid-cursor",
        "version-quarantined",
        "artifact-collected",
        "artifact-quarantined",
        "artifact-damaged",
        "object-store-unavailable",
    ],
)
async def diff(request: web.Request, query: DiffQuery) -> web.Response:
    """Compare two artifacts that a bundle has or had.

    Lists the members that have to be added, removed or changed to get from one to the other, by path.
    """
    slug = request.match_info["slug"]
    found = await request.app[DIFFER].diff(slug, query.before, query.after, query.wanted(), text=query.text)
    return json_response(found)


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


ROUTES = (
    web.get("/job-bundles/{slug}/diff", diff),
    web.post("/job-bundles/{slug}/versions/{version}/rollback", roll_back),
)
