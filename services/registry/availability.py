"""Whether an artifact can be had: its object may have been collected, or found damaged."""

from collections.abc import Sequence

from libs.common.database import Connection, Pool
from libs.common.errors import Conflict, Gone, NotFound
from libs.common.identifiers import check_digest
from libs.common.models import rfc3339
from services.registry.store import artifacts
from services.registry.store.artifacts import Artifact


async def get_available(connection: Connection, digest: str) -> Artifact:
    """The artifact. Raises NotFound where it is unknown, Gone where it was collected, Conflict where it is damaged."""
    found = await artifacts.get(connection, digest)
    if found is None:
        raise NotFound(f"there is no artifact {digest}.", kind="artifact-not-found")
    await require_available(connection, found)
    return found


async def require_available(connection: Connection, artifact: Artifact) -> None:
    """Raise Gone where the artifact was collected, or Conflict where it is damaged: with what was, and the way back."""
    if artifact.available:
        return
    equal = await artifacts.find_equal(connection, artifact.content_digest, other_than=artifact.digest)
    way_back = (
        f"The same content is there as {equal}."
        if equal
        else "Publish the same content again, or rebuild it, to get it back."
    )
    if artifact.collected_at is not None:
        raise Gone(
            f"the artifact {artifact.digest} was collected at {rfc3339(artifact.collected_at)} by the policy: "
            f"{artifact.collection_policy}. Its record stays. {way_back}",
            kind="artifact-collected",
            digest=artifact.digest,
            equalDigest=equal,
            collectedAt=rfc3339(artifact.collected_at),
            policy=artifact.collection_policy,
        )
    if artifact.gc_claimed_at is not None:
        raise Gone(
            f"the artifact {artifact.digest} is being collected just now, since nothing kept it. {way_back}",
            kind="artifact-collected",
            digest=artifact.digest,
            equalDigest=equal,
        )
    raise Conflict(
        f"the artifact {artifact.digest} is quarantined: {artifact.damage}. {way_back}",
        kind="artifact-quarantined",
        digest=artifact.digest,
        equalDigest=equal,
        damage=artifact.damage,
    )


async def require_for_run(connection: Connection, found: Artifact) -> Artifact:
    """The same for a run, which is noted: from now on it is not collected for as long as the retention says.

    The use is in the database when this returns, so that nobody collects what a run was just promised. That is written
    once an hour for each artifact, and read at no extra cost.
    """
    await require_available(connection, found)
    if found.gc_marked_at is None and found.used_lately:
        return found
    if not await artifacts.note_uses(connection, [found.digest]):
        return await get_available(connection, found.digest)  # somebody else has noted it, or claimed it
    return found


async def note_uses(pool: Pool, digests: Sequence[str], readable: list[str] | None) -> list[str]:
    """Note that runs that have not ended use these artifacts; those of them that can't be had any more.

    Where patterns of slugs are given, what no bundle has or had that matches is unknown.
    """
    asked = sorted({check_digest(digest) for digest in digests})
    async with pool.acquire() as connection:
        known = [
            digest for digest in asked if readable is None or await artifacts.is_of_any(connection, digest, readable)
        ]
        await artifacts.note_uses(connection, known)
        unavailable = await artifacts.unavailable(connection, known)
    return sorted({*unavailable, *(set(asked) - set(known))})
