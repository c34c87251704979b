"""What is published: bundles, versions, revisions, files, and what a reference means right now."""

from dataclasses import dataclass

from libs.common import audit
from libs.common.audit import Origin
from libs.common.database import Connection, Pool
from libs.common.errors import InvalidRequest, NotFound
from libs.common.identifiers import check_digest, check_slug, check_version
from libs.common.log import get_logger
from libs.common.models import VersionPatch, VersionStatus
from services.registry.availability import get_available, get_for_run
from services.registry.store import artifacts, bundles, versions
from services.registry.store.artifacts import Artifact, File
from services.registry.store.bundles import Bundle
from services.registry.store.versions import Revision, Version

LATEST = "latest"

_log = get_logger("registry")


@dataclass(frozen=True, slots=True)
class Resolved:
    """What a reference means right now."""

    slug: str
    version: str
    revision: int
    status: str
    artifact: Artifact


async def get_bundle(pool: Pool, slug: str) -> Bundle:
    """The bundle, or NotFound."""
    async with pool.acquire() as connection:
        bundle = await bundles.get(connection, check_slug(slug))
    if bundle is None:
        raise _no_bundle(slug)
    return bundle


async def list_bundles(pool: Pool, readable: list[str] | None, *, after: str | None, limit: int) -> list[Bundle]:
    """Bundles by slug, of those that match a pattern of `readable`, or of all."""
    async with pool.acquire() as connection:
        return await bundles.list_page(connection, readable, after=after, limit=limit)


async def get_version(pool: Pool, slug: str, version: str) -> Version:
    """The version, which may be `latest`, or NotFound."""
    async with pool.acquire() as connection:
        return await _version(connection, slug, version)


async def list_versions(pool: Pool, slug: str, *, below: str | None, limit: int) -> list[Version]:
    """Versions of a bundle, highest first, from below the sort key `below`; NotFound where there is no such bundle."""
    async with pool.acquire() as connection:
        found = await versions.list_page(connection, check_slug(slug), below=below, limit=limit)
        if not found and await bundles.get(connection, slug) is None:
            raise _no_bundle(slug)
    return found


async def list_revisions(pool: Pool, slug: str, version: str, *, below: int | None, limit: int) -> list[Revision]:
    """Revisions of a version, newest first."""
    async with pool.acquire() as connection:
        found = await _version(connection, slug, version)
        return await versions.list_revisions(connection, found.id, below=below, limit=limit)


async def list_files(pool: Pool, slug: str, version: str, *, after: str | None, limit: int) -> list[File]:
    """Members of a version's current artifact by path."""
    async with pool.acquire() as connection:
        found = await _version(connection, slug, version)
        return await artifacts.list_files(connection, found.digest, after=after, limit=limit)


async def get_artifact(pool: Pool, digest: str, readable: list[str] | None = None) -> Artifact:
    """The artifact; NotFound where it is unknown, Gone where it was collected, Conflict where it is quarantined.

    Where patterns of slugs are given, it is unknown unless a bundle that matches has or had it.
    """
    async with pool.acquire() as connection:
        if readable is not None and not await artifacts.is_of_any(connection, check_digest(digest), readable):
            raise NotFound(f"there is no artifact {digest}.", kind="artifact-not-found")
        return await get_available(connection, check_digest(digest))


async def resolve(pool: Pool, slug: str, reference: str) -> Resolved:
    """What `latest`, a version or a digest of this bundle means.

    A digest stands for the newest revision that is or was this artifact, whatever replaced it since. Deprecated
    versions are resolved as well: whether to run them is the runner's to say. Gone where the artifact was collected,
    Conflict where it is quarantined; else it counts as used from now on.
    """
    async with pool.acquire() as connection:
        if reference.startswith("sha256:"):
            digest = check_digest(reference)
            named = await versions.find_revision_by_digest(connection, check_slug(slug), digest)
            if named is None:
                raise NotFound(
                    f"no revision of {slug} is or was {digest}. GET /job-bundles/{slug}/versions lists what there is.",
                    kind="digest-not-found",
                )
            artifact = await get_for_run(connection, digest)
            return Resolved(slug, named.version, named.revision, named.status, artifact)
        found = await _version(connection, slug, reference)
        artifact = await get_for_run(connection, found.digest)
        return Resolved(slug, found.version, found.revision, found.status, artifact)


async def patch_version(pool: Pool, slug: str, version: str, patch: VersionPatch, origin: Origin) -> Version:
    """Deprecate a version, which needs a reason, or offer it again; what it is already changes nothing."""
    check_slug(slug)
    check_version(version)
    deprecated = patch.status is VersionStatus.DEPRECATED
    given = (patch.reason or "").strip() or None
    if deprecated and given is None:
        raise InvalidRequest(
            f"deprecating {slug}@{version} needs a reason: say what to use instead.", kind="reason-required"
        )
    reason = given if deprecated else None
    async with pool.acquire() as connection, connection.transaction():
        await versions.lock(connection, slug, version)
        found = await _version(connection, slug, version)
        if (found.status, found.deprecation_reason) == (patch.status, reason):
            return found
        await versions.set_status(connection, found.id, patch.status.value, reason)
        await audit.append(
            connection,
            origin,
            audit.Event(
                "version.deprecated" if deprecated else "version.reactivated",
                f"{slug}@{version}",
                digest=found.digest,
                reason=given,
            ),
        )
        patched = await _version(connection, slug, version)
    _log.info(
        "version_status_changed", slug=slug, version=version, status=patch.status, reason=given, actor=origin.actor
    )
    return patched


async def _version(connection: Connection, slug: str, version: str) -> Version:
    check_slug(slug)
    if version == LATEST:
        found = await versions.find_latest(connection, slug)
    else:
        found = await versions.find(connection, slug, check_version(version))
    if found is not None:
        return found
    if await bundles.get(connection, slug) is None:
        raise _no_bundle(slug)
    if version == LATEST:
        raise NotFound(
            f"{slug} has no version that is offered: all are deprecated. Publish a version, or name one.",
            kind="version-not-found",
        )
    raise NotFound(
        f"{slug} has no version {version}. GET /job-bundles/{slug}/versions lists what there is.",
        kind="version-not-found",
    )


def _no_bundle(slug: str) -> NotFound:
    return NotFound(f"there is no bundle {slug}. GET /job-bundles lists what there is.", kind="bundle-not-found")
