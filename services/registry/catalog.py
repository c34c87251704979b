"""What is published: bundles, versions, revisions, files, and what a reference means right now."""

from dataclasses import replace

from libs.common.database import Connection, Pool
from libs.common.errors import NotFound
from libs.common.identifiers import check_digest, check_slug, check_version
from services.registry.availability import get_available, require_for_run
from services.registry.store import artifacts, bundles, resolutions, versions
from services.registry.store.artifacts import Artifact, File
from services.registry.store.bundles import Bundle
from services.registry.store.resolutions import Resolution
from services.registry.store.versions import Revision, Version

LATEST = "latest"


async def get_bundle(pool: Pool, slug: str) -> Bundle:
    """The bundle, or NotFound."""
    async with pool.acquire() as connection:
        return await find_bundle(connection, check_slug(slug))


async def list_bundles(pool: Pool, readable: list[str] | None, *, after: str | None, limit: int) -> list[Bundle]:
    """Bundles by slug, of those that match a pattern of `readable`, or of all."""
    async with pool.acquire() as connection:
        return await bundles.list_page(connection, readable, after=after, limit=limit)


async def get_version(pool: Pool, slug: str, version: str) -> Version:
    """The version, which may be `latest`, or NotFound."""
    async with pool.acquire() as connection:
        return await find_version(connection, slug, version)


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
        found = await find_version(connection, slug, version)
        return await versions.list_revisions(connection, found.id, below=below, limit=limit)


async def list_files(pool: Pool, slug: str, version: str, *, after: str | None, limit: int) -> list[File]:
    """Members of a version's current artifact by path."""
    async with pool.acquire() as connection:
        found = await find_version(connection, slug, version)
        return await artifacts.list_files(connection, found.digest, after=after, limit=limit)


async def get_artifact(pool: Pool, digest: str, readable: list[str] | None = None) -> Artifact:
    """The artifact; NotFound where it is unknown, Gone where it was collected, Conflict where it is quarantined.

    Where patterns of slugs are given, it is unknown unless a bundle that matches has or had it.
    """
    async with pool.acquire() as connection:
        if readable is not None and not await artifacts.is_of_any(connection, check_digest(digest), readable):
            raise NotFound(f"there is no artifact {digest}.", kind="artifact-not-found")
        return await get_available(connection, check_digest(digest))


async def resolve(pool: Pool, slug: str, reference: str) -> Resolution:
    """What `latest`, a version or a digest of this bundle means.

    A digest stands for the newest revision that is or was this artifact, whatever replaced it since. Versions that are
    no longer offered are resolved as well: whether to run them is the runner's to say. Gone where the artifact was
    collected, Conflict where it is quarantined; else it counts as used from now on.
    """
    check_slug(slug)
    async with pool.acquire() as connection:
        if reference.startswith("sha256:"):
            found = await resolutions.by_digest(connection, slug, check_digest(reference))
        elif reference == LATEST:
            found = await resolutions.latest(connection, slug)
        else:
            found = await resolutions.by_version(connection, slug, check_version(reference))
        if found is None:
            raise await _unresolved(connection, slug, reference)
        artifact = await require_for_run(connection, found.artifact)
        return found if artifact is found.artifact else replace(found, artifact=artifact)


async def _unresolved(connection: Connection, slug: str, reference: str) -> NotFound:
    if not reference.startswith("sha256:"):
        return await _no_version(connection, slug, reference)
    return NotFound(
        f"no revision of {slug} is or was {reference}. GET /job-bundles/{slug}/versions lists what there is.",
        kind="digest-not-found",
    )


async def find_bundle(connection: Connection, slug: str) -> Bundle:
    """The bundle, or NotFound."""
    found = await bundles.get(connection, slug)
    if found is None:
        raise _no_bundle(slug)
    return found


async def find_version(connection: Connection, slug: str, version: str) -> Version:
    """The version, which may be `latest`, or NotFound."""
    check_slug(slug)
    if version == LATEST:
        found = await versions.find_latest(connection, slug)
    else:
        found = await versions.find(connection, slug, check_version(version))
    if found is None:
        raise await _no_version(connection, slug, version)
    return found


async def _no_version(connection: Connection, slug: str, version: str) -> NotFound:
    if await bundles.get(connection, slug) is None:
        return _no_bundle(slug)
    if version == LATEST:
        return NotFound(
            f"{slug} has no version that is offered: all are deprecated, yanked or quarantined. Publish a version, or "
            "name one.",
            kind="version-not-found",
        )
    return NotFound(
        f"{slug} has no version {version}. GET /job-bundles/{slug}/versions lists what there is.",
        kind="version-not-found",
    )


def _no_bundle(slug: str) -> NotFound:
    return NotFound(f"there is no bundle {slug}. GET /job-bundles lists what there is.", kind="bundle-not-found")
