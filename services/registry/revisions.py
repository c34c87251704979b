"""One transaction: decide what becomes of a tarball, and write the revision or the refusal, with its audit event."""

from collections.abc import Sequence
from dataclasses import dataclass

from libs.common import audit
from libs.common.audit import Origin
from libs.common.auth import Principal
from libs.common.database import Connection
from libs.common.log import get_logger
from libs.common.manifest import Manifest
from libs.common.objects import artifact_key
from services.registry.difference import difference_for_event, row_of
from services.registry.inspection import Inspection
from services.registry.store import artifacts, bundles, versions
from services.registry.store.bundles import Description
from services.registry.store.versions import NewRevision, Version
from services.registry.verdict import Outcome, Proposal, Refusal, judge

_log = get_logger("registry")


@dataclass(frozen=True, slots=True)
class Offer:
    """A tarball that passed inspection, with who offers it as what."""

    inspection: Inspection
    manifest: Manifest
    proposal: Proposal
    principal: Principal
    origin: Origin


@dataclass(frozen=True, slots=True)
class Decision:
    """A verdict, and the version before and after it; they differ only where a revision was written."""

    verdict: Outcome | Refusal
    before: Version | None
    after: Version | None

    @property
    def written(self) -> bool:
        """Whether a revision was written."""
        return self.after is not self.before

    def concerns(self, digest: str) -> bool:
        """Whether the artifact's own object matters: not after a refusal, nor where the version has other bytes."""
        if isinstance(self.verdict, Refusal):
            return False
        return self.verdict is not Outcome.IDENTICAL or (self.before is not None and self.before.digest == digest)


async def decide(
    connection: Connection, offer: Offer, *, policy: Sequence[str], lost_digest: str | None, write: bool
) -> Decision:
    """Decide under the lock on the version. A refused force is recorded; a revision is written only if `write`.

    `policy` are the platforms for which a bundle may be published that does not say so itself.
    """
    proposal = offer.proposal
    async with connection.transaction():
        await versions.lock(connection, proposal.slug, proposal.version)
        before = after = await versions.find(connection, proposal.slug, proposal.version)
        allowed = await bundles.allowed_platforms(connection, proposal.slug) or policy
        verdict = judge(
            before, offer.inspection, proposal, offer.principal, allowed_platforms=allowed, lost_digest=lost_digest
        )
        if isinstance(verdict, Refusal):
            await record_refusal(connection, verdict, proposal, offer.origin, offered_digest=offer.inspection.digest)
        elif write and verdict is not Outcome.IDENTICAL:
            await _write(connection, offer, before)
            after = await versions.find(connection, proposal.slug, proposal.version)
    decision = Decision(verdict, before, after)
    _log_decision(decision, offer)
    return decision


async def record_refusal(
    connection: Connection,
    refusal: Refusal,
    proposal: Proposal,
    origin: Origin,
    *,
    offered_digest: str | None,
    operation: str = "publish",
) -> None:
    """Put a refused force into the audit trail. A conflict without force is nothing that anybody forced."""
    _log.info(
        "publication_refused",
        operation=operation,
        slug=proposal.slug,
        version=proposal.version,
        kind=refusal.error.kind,
        digest=offered_digest,
        actor=origin.actor,
        request_id=origin.request_id,
    )
    if proposal.force:
        await audit.append(
            connection,
            origin,
            audit.Event(
                "version.force_refused",
                proposal.subject,
                digest=offered_digest,
                previous_digest=refusal.existing.digest if refusal.existing else None,
                reason=proposal.reason_to_replace,
                detail={
                    "operation": operation,
                    "refusal": refusal.error.kind,
                    "expectedDigest": proposal.expected_digest,
                },
            ),
        )


async def _write(connection: Connection, offer: Offer, before: Version | None) -> None:
    proposal, actor = offer.proposal, offer.origin.actor
    revision = NewRevision(
        digest=offer.inspection.digest,
        published_by=actor,
        reason=proposal.reason_to_replace if before else proposal.reason,
        previous_digest=before.digest if before else None,
        build_id=proposal.build_id,
        rolled_back_to=None,
    )
    bundle_id = await bundles.ensure(connection, proposal.slug, actor=actor, description=_description(offer))
    await artifacts.insert(connection, _artifact(offer.inspection), map(row_of, offer.inspection.files))
    if before is None:
        await versions.insert(connection, bundle_id, proposal.version, revision, immutable=proposal.immutable)
    else:
        await versions.advance(connection, before.id, revision, immutable=proposal.immutable)
    await audit.append(connection, offer.origin, await _event(connection, offer, revision, before))


async def _event(connection: Connection, offer: Offer, revision: NewRevision, before: Version | None) -> audit.Event:
    detail = {
        "revision": before.revision + 1 if before else 1,
        "contentDigest": offer.inspection.content_digest,
        "platforms": offer.inspection.platforms,
        "buildId": revision.build_id,
    }
    if before is not None:
        detail["difference"] = await difference_for_event(connection, before, offer.inspection)
    return audit.Event(
        "version.replaced" if before else "version.published",
        offer.proposal.subject,
        digest=revision.digest,
        previous_digest=revision.previous_digest,
        reason=revision.reason,
        detail=detail,
    )


def _description(offer: Offer) -> Description:
    given = offer.proposal.description
    return Description(given.display_name, given.description or offer.manifest.description, given.metadata)


def _artifact(inspection: Inspection) -> artifacts.NewArtifact:
    return artifacts.NewArtifact(
        digest=inspection.digest,
        content_digest=inspection.content_digest,
        size=inspection.size,
        unpacked_size=inspection.unpacked_size,
        file_count=inspection.file_count,
        compression=inspection.compression,
        object_key=artifact_key(inspection.digest, inspection.compression),
        manifest=inspection.manifest,
        platforms=inspection.platforms,
        native=[{"path": path, "platform": platform} for path, platform in inspection.native],
    )


def _log_decision(decision: Decision, offer: Offer) -> None:
    after = decision.after
    if not decision.written or after is None:
        return
    fields = {
        "slug": after.slug,
        "version": after.version,
        "revision": after.revision,
        "digest": after.digest,
        "platforms": after.platforms,
        "actor": offer.origin.actor,
        "request_id": offer.origin.request_id,
    }
    if decision.before is None:
        _log.info("bundle_published", **fields)
    else:
        _log.info("bundle_replaced", **fields, previous_digest=decision.before.digest, reason=after.reason)
