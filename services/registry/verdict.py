"""What is to be done with a tarball that was offered as a version: the publish table, in one function."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from libs.common.auth import Principal, Scope
from libs.common.errors import Conflict, Forbidden, InvalidRequest, PreconditionFailed, StowageError
from libs.common.models import VersionStatus, rfc3339
from services.registry.gate import refuse_platforms
from services.registry.inspection import Inspection
from services.registry.store.artifacts import Artifact
from services.registry.store.bundles import Description
from services.registry.store.versions import Version


@dataclass(frozen=True, slots=True)
class Proposal:
    """What a publisher asks for. `expected_digest` is what they think that they replace.

    `default_reason` is why something is replaced where the way to publish has no place to say it.
    """

    slug: str
    version: str
    force: bool = False
    expected_digest: str | None = None
    reason: str | None = None
    default_reason: str | None = None
    build_id: str | None = None
    immutable: bool = False
    description: Description = field(default_factory=Description)

    @property
    def subject(self) -> str:
        """The version's name in logs and in the audit trail."""
        return f"{self.slug}@{self.version}"

    @property
    def reason_to_replace(self) -> str | None:
        """Why the version is replaced, if it is."""
        return self.reason or self.default_reason


class Outcome(StrEnum):
    """What a publication came to."""

    CREATED = "created"  # the version is new
    IDENTICAL = "identical"  # it has this content already: nothing changes
    REPLACED = "replaced"  # it has a new revision


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why nothing is to be done. `existing` is what stands against it, if anything."""

    error: StowageError
    existing: Version | None = None


def judge(
    existing: Version | None,
    offered: Inspection,
    proposal: Proposal,
    principal: Principal,
    *,
    allowed_platforms: Sequence[str],
    lost_digest: str | None,
) -> Outcome | Refusal:
    """Decide what becomes of `offered`, given the version as it is. Call it under the lock on the version.

    `lost_digest` is an artifact whose object is known to be lost: equal content with other bytes can't mend it.
    """
    if existing is None:
        refused = judge_absent(proposal)
        if refused:
            return refused
    elif existing.content_digest == offered.content_digest and existing.digest != lost_digest:
        return Outcome.IDENTICAL
    foreign = refuse_platforms(proposal.subject, offered.native, allowed_platforms)
    if foreign:
        return Refusal(foreign, existing)
    if existing is None:
        return Outcome.CREATED
    if not proposal.force:
        return Refusal(_conflict(existing, proposal, lost=existing.digest == lost_digest), existing)
    refusal = _refused_force(existing, proposal, principal)
    return Refusal(refusal, existing) if refusal else Outcome.REPLACED


def judge_rollback(
    existing: Version, target: Artifact, proposal: Proposal, principal: Principal, *, allowed_platforms: Sequence[str]
) -> Outcome | Refusal:
    """Decide whether a version is to point at an artifact that it was. Call it under the lock on the version."""
    if existing.digest == target.digest:
        return Outcome.IDENTICAL
    native = [(file["path"], file["platform"]) for file in target.native]
    refused = refuse_platforms(proposal.subject, native, allowed_platforms) or _refused_force(
        existing, proposal, principal
    )
    return Refusal(refused, existing) if refused else Outcome.REPLACED


def judge_absent(proposal: Proposal) -> Refusal | None:
    """Why a version that does not exist can't be published as proposed, or None."""
    if proposal.expected_digest is None:
        return None
    error = PreconditionFailed(
        f"{proposal.subject} does not exist, so it is not {proposal.expected_digest}. Leave expectedDigest out to "
        "publish it for the first time.",
        kind="stale-digest",
        expectedDigest=proposal.expected_digest,
        currentDigest=None,
    )
    return Refusal(error)


def _refused_force(existing: Version, proposal: Proposal, principal: Principal) -> StowageError | None:
    if not principal.may(Scope.BUNDLES_FORCE, proposal.slug):
        return Forbidden(
            f"the token of “{principal.subject}” may not replace {proposal.subject}: it lacks the scope "
            f"{Scope.BUNDLES_FORCE} for it. Ask an administrator for a token that has it, or publish a new version.",
            requiredScope=Scope.BUNDLES_FORCE.value,
            slug=proposal.slug,
            **_facts(existing),
        )
    if proposal.expected_digest not in (None, existing.digest):
        return PreconditionFailed(
            f"{proposal.subject} is no longer {proposal.expected_digest}: revision {existing.revision} is "
            f"{existing.digest}. Look at what is there now, and repeat with its digest if it is still to be replaced.",
            kind="stale-digest",
            expectedDigest=proposal.expected_digest,
            currentDigest=existing.digest,
            **_facts(existing),
        )
    if not principal.may(Scope.ADMIN) and (protected := refuse_protected(existing)):
        return protected
    if not proposal.reason_to_replace:
        return InvalidRequest(
            f"replacing {proposal.subject} needs the parameter reason: say why, in a sentence.",
            kind="reason-required",
            parameter="reason",
            **_facts(existing),
        )
    return None


def refuse_protected(existing: Version) -> Conflict | None:
    """Why nobody but an administrator may give the version another revision, or None where others may."""
    subject = f"{existing.slug}@{existing.version}"
    if existing.status == VersionStatus.QUARANTINED:
        return Conflict(
            f"{subject} is quarantined by “{existing.status_by}”: {existing.status_reason} Only an administrator may "
            "replace it, or release it. Publish a new version.",
            kind="version-quarantined",
            **_facts(existing),
        )
    if existing.bundle_immutable:
        return Conflict(
            f"the bundle {existing.slug} is immutable: only an administrator may replace {subject}. Publish a new "
            "version.",
            kind="bundle-immutable",
            **_facts(existing),
        )
    if existing.immutable:
        return Conflict(
            f"{subject} is immutable: only an administrator may replace it. Publish a new version.",
            kind="version-immutable",
            **_facts(existing),
        )
    return None


def _conflict(existing: Version, proposal: Proposal, *, lost: bool) -> Conflict:
    if lost:
        return Conflict(
            f"{proposal.subject} has equal content in other bytes, {existing.digest}, but its object is lost from the "
            "bucket. Publish those very bytes again, or replace it with force=true and a reason.",
            kind="artifact-lost",
            **_facts(existing),
        )
    publisher = existing.replaced_by or existing.published_by
    moment = rfc3339(existing.replaced_at or existing.published_at)
    return Conflict(
        f"{proposal.subject} exists with other content, published by “{publisher}” at {moment}. Publish a new version, "
        "or replace this one on purpose with force=true and a reason.",
        kind="version-exists",
        **_facts(existing),
    )


def _facts(existing: Version) -> dict[str, Any]:
    """What is there, for a program. Publisher and time are those of the current revision."""
    return {
        "existingDigest": existing.digest,
        "existingContentDigest": existing.content_digest,
        "existingRevision": existing.revision,
        "publishedBy": existing.replaced_by or existing.published_by,
        "publishedAt": rfc3339(existing.replaced_at or existing.published_at),
    }
