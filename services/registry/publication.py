"""Publishing: a tarball becomes the first or the next revision of a version, or is refused and leaves nothing behind.

The bucket is written before the rows that name what is in it, and asked only outside of transactions. The lock on the
artifact covers both, so that nobody removes an object as unused while somebody else is about to refer to it.
"""

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, replace

import asyncpg

from libs.common.archive import ArchiveLimits, EntryType
from libs.common.audit import Origin
from libs.common.auth import Principal
from libs.common.completion import to_the_end
from libs.common.database import Connection, Pool
from libs.common.errors import Conflict, StowageError
from libs.common.log import get_logger
from libs.common.manifest import Manifest, read_manifest
from libs.common.objects import ObjectStore, artifact_key
from services.registry.condition import record_repair
from services.registry.difference import with_offered
from services.registry.incoming import Announced, Incoming, received
from services.registry.inspection import Inspection
from services.registry.placement import Label, is_whole, place
from services.registry.references import find_readable, inspection_of
from services.registry.revisions import Decision, Offer, decide, record_refusal
from services.registry.store import artifacts, versions
from services.registry.store.versions import Version
from services.registry.verdict import Outcome, Proposal, Refusal, judge_absent

_DATABASE_ERRORS = (
    asyncpg.PostgresError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,
    OSError,
    TimeoutError,
)
_STREAMED_AT_A_TIME = 16
_TIDY_UP_PAUSES = (0.1, 0.5, 2.0)  # seconds

_log = get_logger("registry")


@dataclass(frozen=True, slots=True)
class Published:
    """How a publication ended, and the version as it is now."""

    outcome: Outcome
    version: Version


class Publisher:
    """Publishes. Whoever uses the database and the bucket has one of the `slots`; the others wait.

    `allowed_platforms` are those of bundles that don't name their own.
    """

    def __init__(
        self,
        pool: Pool,
        objects: ObjectStore,
        limits: ArchiveLimits,
        slots: asyncio.Semaphore,
        *,
        allowed_platforms: Sequence[str],
    ) -> None:
        self._pool = pool
        self._objects = objects
        self._limits = limits
        self._slots = slots
        self._streams = asyncio.Semaphore(_STREAMED_AT_A_TIME)
        self._policy = allowed_platforms

    async def publish(
        self,
        proposal: Proposal,
        chunks: AsyncIterator[bytes],
        principal: Principal,
        origin: Origin,
        announced: Announced,
    ) -> Published:
        """Publish the tarball that `chunks` are, which must have the digest that is announced.

        Raises Conflict, Forbidden or PreconditionFailed as the verdict is; InvalidRequest where a replacement has no
        reason; Unprocessable or TooLarge for what is wrong with the tarball. Refused force is in the audit trail.
        """
        await self._check_before_upload(proposal, origin)
        async with received(
            self._objects, chunks, self._limits, announced=announced, streams=self._streams
        ) as incoming:
            manifest = _checked_manifest(incoming.inspection, proposal)
            offer = Offer(incoming.inspection, manifest, proposal, principal, origin)
            # From here on the caller's leaving changes nothing: rows and objects must end up in agreement.
            return await to_the_end(self._settle(offer, incoming))

    async def publish_stored(self, proposal: Proposal, digest: str, principal: Principal, origin: Origin) -> Published:
        """Publish the artifact `digest`, which was uploaded before, under the same rules.

        Raises in addition NotFound, Gone or Conflict where the artifact can't be had.
        """
        artifact = await find_readable(self._pool, digest, proposal.slug, principal)
        await self._check_before_upload(proposal, origin)
        async with self._pool.acquire() as connection:
            inspection = await inspection_of(connection, artifact)
        manifest = _checked_manifest(inspection, proposal)
        return await to_the_end(self._settle(Offer(inspection, manifest, proposal, principal, origin), None))

    async def _check_before_upload(self, proposal: Proposal, origin: Origin) -> None:
        """Spare the publisher the upload where its end is known. Everything is decided again after it."""
        refusal = judge_absent(proposal)
        if refusal is None:
            return
        async with self._pool.acquire() as connection:
            if await versions.find(connection, proposal.slug, proposal.version) is None:
                await record_refusal(connection, refusal, proposal, origin, offered_digest=None)
                raise refusal.error

    async def _settle(self, offer: Offer, incoming: Incoming | None) -> Published:
        async with self._slots:
            try:
                decision = await self._decide_and_write(offer, incoming)
            except BaseException:
                await self._tidy_up(offer)
                raise
            if isinstance(decision.verdict, Refusal):
                raise await self._explained(decision.verdict, offer)
        if decision.after is None:
            raise RuntimeError("a publication that was not refused has no version")
        return Published(decision.verdict, decision.after)

    async def _decide_and_write(self, offer: Offer, incoming: Incoming | None) -> Decision:
        """Decide, and write what was decided. `incoming` is None for an artifact that was uploaded before."""
        async with self._pool.acquire() as connection:
            lost_digest = await self._lost_digest(connection, offer)
            decision = await decide(connection, offer, policy=self._policy, lost_digest=lost_digest, write=False)
            if not decision.concerns(offer.inspection.digest):
                return decision
            if incoming is not None and decision.verdict is Outcome.REPLACED:
                stored = await self._stored_with_equal_content(connection, offer)
                written = stored and await self._write(connection, stored, None, lost_digest)
                if written:
                    return written
            written = await self._write(connection, offer, incoming, lost_digest)
        if written is None:
            raise Conflict(
                f"the object of {offer.inspection.digest} is missing from the bucket or damaged. Send the tarball.",
                kind="artifact-lost",
                digest=offer.inspection.digest,
            )
        return written

    async def _write(
        self, connection: Connection, offer: Offer, incoming: Incoming | None, lost_digest: str | None
    ) -> Decision | None:
        """Decide once more, now that the object is there; None where it is not, and there is nothing to make it of."""
        async with artifacts.locked(connection, offer.inspection.digest):
            if not await self._place(connection, offer, incoming):
                return None
            decision = await decide(connection, offer, policy=self._policy, lost_digest=lost_digest, write=True)
            if not decision.written:  # it was there already, or somebody else was faster
                await self._remove_unless_referred_to(connection, offer.inspection)
        return decision

    async def _place(self, connection: Connection, offer: Offer, incoming: Incoming | None) -> bool:
        """See to it that the object is there; and where that was not so, or not to be so, that its row says it now."""
        proposal, inspection = offer.proposal, offer.inspection
        known = await artifacts.get(connection, inspection.digest)
        if incoming is None:
            return (
                known is not None
                and known.available
                and await asyncio.to_thread(is_whole, self._objects, known.object_key, known.size)
            )
        rewrite = proposal.force or (known is not None and known.damaged_at is not None)
        label = Label(proposal.slug, proposal.version, offer.origin.actor)
        missing = await asyncio.to_thread(place, self._objects, incoming, label, rewrite=rewrite)
        if known is not None and (missing or not known.available):
            await record_repair(connection, known, offer.origin, subject=proposal.subject)
        return True

    async def _stored_with_equal_content(self, connection: Connection, offer: Offer) -> Offer | None:
        """The same offer with the artifact that has this content already in other bytes, if there is one."""
        inspection = offer.inspection
        digest = await artifacts.find_equal(connection, inspection.content_digest, other_than=inspection.digest)
        stored = digest and await artifacts.get(connection, digest)
        return replace(offer, inspection=await inspection_of(connection, stored)) if stored else None

    async def _lost_digest(self, connection: Connection, offer: Offer) -> str | None:
        """The artifact of the version, if it has equal content in other bytes and its object is lost."""
        current = await versions.find(connection, offer.proposal.slug, offer.proposal.version)
        if (
            current is None
            or current.content_digest != offer.inspection.content_digest
            or current.digest == offer.inspection.digest
        ):
            return None
        known = await artifacts.get(connection, current.digest)
        if known is not None and not known.available:
            return current.digest
        whole = await asyncio.to_thread(is_whole, self._objects, current.object_key, current.size)
        return None if whole else current.digest

    async def _tidy_up(self, offer: Offer) -> None:
        """Remove the object after the bucket or the database failed us, perhaps in the middle of a commit."""
        digest = offer.inspection.digest
        for pause in (*_TIDY_UP_PAUSES, None):
            try:
                await self._remove_after_failure(offer)
                return
            except _DATABASE_ERRORS as error:
                if pause is None:
                    _log.warning("artifact_left_behind", digest=digest, error=str(error))
                    return
            await asyncio.sleep(pause)

    async def _remove_after_failure(self, offer: Offer) -> None:
        async with self._pool.acquire() as connection, artifacts.locked(connection, offer.inspection.digest):
            # Granted only when a transaction that was left in doubt has ended: what is seen then is its end.
            async with connection.transaction():
                await versions.lock(connection, offer.proposal.slug, offer.proposal.version)
            await self._remove_unless_referred_to(connection, offer.inspection)

    async def _remove_unless_referred_to(self, connection: Connection, inspection: Inspection) -> None:
        """Delete the object if no row names it. Under the lock on the artifact."""
        if await artifacts.exists(connection, inspection.digest):
            return
        try:
            await asyncio.to_thread(self._objects.delete, artifact_key(inspection.digest, inspection.compression))
        except StowageError as error:
            _log.warning("artifact_left_behind", digest=inspection.digest, error=error.message)

    async def _explained(self, refusal: Refusal, offer: Offer) -> StowageError:
        """The refusal's error; a conflict says which files differ."""
        if isinstance(refusal.error, Conflict) and refusal.existing is not None:
            async with self._pool.acquire() as connection:
                difference = await with_offered(connection, refusal.existing, offer.inspection)
            refusal.error.details["difference"] = difference.model_dump(by_alias=True)
        return refusal.error


def _checked_manifest(inspection: Inspection, proposal: Proposal) -> Manifest:
    manifest = read_manifest(inspection.manifest)
    manifest.require_identity(proposal.slug, proposal.version)
    manifest.require_entry(
        {file.path for file in inspection.files if file.type in (EntryType.FILE, EntryType.HARDLINK)}
    )
    return manifest
