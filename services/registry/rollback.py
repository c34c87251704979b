"""Going back: a version gets a new revision that points at an artifact that it had before."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

from libs.common import audit
from libs.common.audit import Origin
from libs.common.auth import Principal
from libs.common.database import Connection, Pool
from libs.common.errors import Conflict, NotFound
from libs.common.idempotency import Conclude, nothing
from libs.common.log import get_logger
from libs.common.objects import ObjectStore
from services.registry import catalog
from services.registry.availability import get_available
from services.registry.difference import difference_for_event
from services.registry.placement import is_whole
from services.registry.revisions import record_refusal
from services.registry.store import artifacts, bundles, versions
from services.registry.store.versions import NewRevision, Revision, Version
from services.registry.verdict import Outcome, Proposal, Refusal, judge_rollback

_log = get_logger("registry")


@dataclass(frozen=True, slots=True)
class Rollback:
    """What somebody asks for: `proposal` says of which version and why, `to` is a revision's number or a digest."""

    proposal: Proposal
    to: int | str
    principal: Principal
    origin: Origin
    conclude: Conclude[Version] = nothing


@dataclass(frozen=True, slots=True)
class _Decision:
    verdict: Outcome | Refusal
    target: Revision
    version: Version


class Restorer:
    """Rolls versions back. Whoever uses the database and the bucket has one of the `slots`; the others wait.

    `allowed_platforms` are those of bundles that don't name their own.
    """

    def __init__(
        self, pool: Pool, objects: ObjectStore, slots: asyncio.Semaphore, *, allowed_platforms: Sequence[str]
    ) -> None:
        self._pool = pool
        self._objects = objects
        self._slots = slots
        self._policy = allowed_platforms

    async def roll_back(self, rollback: Rollback) -> Version:
        """The version as it is then. Going back to what is current changes nothing.

        Raises NotFound where there is no such version or it never had that artifact; Forbidden, PreconditionFailed,
        Conflict, Unprocessable or InvalidRequest as the verdict is, which is in the audit trail; Gone where the
        artifact was collected, Conflict where its object is lost, and Unavailable where the bucket can't be asked.
        """
        await catalog.get_version(self._pool, rollback.proposal.slug, rollback.proposal.version)
        async with self._slots, self._pool.acquire() as connection:
            decision = await _decide(connection, rollback, policy=self._policy, write=False)
            if decision.verdict is Outcome.REPLACED:
                # Nobody removes the object as unused between the look at it and the row that refers to it.
                async with artifacts.locked(connection, decision.target.digest):
                    await get_available(connection, decision.target.digest)
                    await self._require_object(decision.target, rollback.proposal)
                    decision = await _decide(connection, rollback, policy=self._policy, write=True)
        if isinstance(decision.verdict, Refusal):
            raise decision.verdict.error
        return decision.version

    async def _require_object(self, target: Revision, proposal: Proposal) -> None:
        if await asyncio.to_thread(is_whole, self._objects, target.object_key, target.size):
            return
        raise Conflict(
            f"{proposal.subject} can't go back to revision {target.revision}: its object {target.digest} is missing "
            "from the bucket or damaged. Publish that content again with force=true and a reason: that goes back as "
            "well, and writes the object anew.",
            kind="artifact-lost",
            digest=target.digest,
            revision=target.revision,
        )


async def _decide(connection: Connection, rollback: Rollback, *, policy: Sequence[str], write: bool) -> _Decision:
    """Decide under the lock on the version. A refusal is recorded; a revision is written only if `write`."""
    proposal = rollback.proposal
    async with connection.transaction():
        await versions.lock(connection, proposal.slug, proposal.version)
        before = after = await _current(connection, proposal)
        target = await _target(connection, before, rollback.to)
        artifact = await artifacts.get(connection, target.digest)
        if artifact is None:
            raise LookupError(f"{target.digest} was a revision, and artifacts' rows are never removed")
        allowed = await bundles.allowed_platforms(connection, proposal.slug) or policy
        verdict = judge_rollback(before, artifact, proposal, rollback.principal, allowed_platforms=allowed)
        if isinstance(verdict, Refusal):
            await record_refusal(
                connection,
                verdict,
                proposal,
                rollback.origin,
                offered_digest=target.digest,
                operation="rollback",
            )
        elif write and verdict is Outcome.REPLACED:
            await _write(connection, rollback, before, target)
            after = await _current(connection, proposal)
            await rollback.conclude(connection, after)
    if after is not before:
        _log_rollback(rollback, before, after, target)
    return _Decision(verdict, target, after)


async def _current(connection: Connection, proposal: Proposal) -> Version:
    found = await versions.find(connection, proposal.slug, proposal.version)
    if found is None:
        raise LookupError(f"{proposal.subject} was there, and versions are never removed")
    return found


async def _target(connection: Connection, version: Version, to: int | str) -> Revision:
    if isinstance(to, int):
        found = await versions.find_revision(connection, version.id, to)
        kind, problem = "revision-not-found", f"has no revision {to}"
    else:
        found = await versions.find_newest_revision(connection, version.id, to)
        kind, problem = "digest-not-found", f"never was {to}"
    if found is None:
        raise NotFound(
            f"{version.slug}@{version.version} {problem}. "
            f"GET /job-bundles/{version.slug}/versions/{version.version}/revisions lists what it was.",
            kind=kind,
        )
    return found


async def _write(connection: Connection, rollback: Rollback, before: Version, target: Revision) -> None:
    proposal = rollback.proposal
    revision = NewRevision(
        digest=target.digest,
        published_by=rollback.origin.actor,
        reason=proposal.reason_to_replace,
        previous_digest=before.digest,
        build_id=target.build_id,
        rolled_back_to=target.revision,
    )
    await versions.advance(connection, before.id, revision, immutable=False)
    await audit.append(
        connection,
        rollback.origin,
        audit.Event(
            "version.rolled_back",
            proposal.subject,
            digest=target.digest,
            previous_digest=before.digest,
            reason=revision.reason,
            detail={
                "revision": before.revision + 1,
                "toRevision": target.revision,
                "contentDigest": target.content_digest,
                "platforms": target.platforms,
                "buildId": target.build_id,
                "difference": await difference_for_event(connection, before, target),
            },
        ),
    )


def _log_rollback(rollback: Rollback, before: Version, after: Version, target: Revision) -> None:
    _log.info(
        "bundle_rolled_back",
        slug=after.slug,
        version=after.version,
        revision=after.revision,
        to_revision=target.revision,
        digest=after.digest,
        previous_digest=before.digest,
        reason=after.reason,
        actor=rollback.origin.actor,
        request_id=rollback.origin.request_id,
    )
