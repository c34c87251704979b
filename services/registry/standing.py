"""What may be done with a version, and what holds for a whole bundle: changed on purpose, with a trace, and taken back.

A version is active, deprecated, yanked or quarantined; who is refused a change is in the audit trail as well.
"""

from dataclasses import replace
from typing import Any

from pydantic.alias_generators import to_camel

from libs.common import audit
from libs.common.audit import Origin
from libs.common.auth import Principal, Scope
from libs.common.database import Connection, Pool
from libs.common.errors import Forbidden, InvalidRequest
from libs.common.identifiers import check_slug, check_version
from libs.common.log import get_logger
from libs.common.models import BundlePatch, VersionPatch, VersionStatus
from libs.common.standing import told
from services.registry.catalog import find_bundle, find_version
from services.registry.gate import check_patterns
from services.registry.store import bundles, versions
from services.registry.store.bundles import Bundle
from services.registry.store.versions import Version

_TAKEN_BACK = {
    VersionStatus.DEPRECATED: "version.reactivated",
    VersionStatus.YANKED: "version.unyanked",
    VersionStatus.QUARANTINED: "version.released",
}

_log = get_logger("registry")


async def patch_version(
    pool: Pool, slug: str, version: str, patch: VersionPatch, principal: Principal, origin: Origin
) -> Version:
    """Change the status of a version, or whether it is immutable; what it is already changes nothing.

    Into quarantine and out of it, and from immutable to mutable, only an administrator may bring it: else Forbidden.
    InvalidRequest where a status other than active has no reason.
    """
    check_slug(slug)
    check_version(version)
    reason = _checked_reason(f"{slug}@{version}", patch)
    async with pool.acquire() as connection, connection.transaction():
        await versions.lock(connection, slug, version)
        before = await find_version(connection, slug, version)
        refusal = None if principal.may(Scope.ADMIN) else _refused_patch(before, patch, reason, principal)
        if refusal is None:
            await _change_status(connection, before, patch, reason, origin)
            await _change_immutable(connection, before, patch, reason, origin)
        else:
            wanted = patch.model_dump(mode="json", by_alias=True, exclude_unset=True, exclude={"reason"})
            await _record_refusal(connection, origin, "version.update_refused", f"{slug}@{version}", wanted, reason)
        after = await find_version(connection, slug, version)
    if refusal is not None:
        raise refusal
    return after


async def patch_bundle(pool: Pool, slug: str, patch: BundlePatch, principal: Principal, origin: Origin) -> Bundle:
    """Change what holds for a whole bundle; what is not set in `patch` stays.

    Only an administrator may change its platforms, or let what was immutable be replaced: else Forbidden.
    """
    check_slug(slug)
    wanted = _wanted_of_bundle(patch)
    reason = _stripped(patch.reason)
    async with pool.acquire() as connection, connection.transaction():
        await bundles.lock(connection, slug)
        before = await find_bundle(connection, slug)
        changes = {name: value for name, value in wanted.items() if getattr(before, name) != value}
        refusal = None if principal.may(Scope.ADMIN) else _refused_settings(slug, changes, principal)
        if refusal is not None:
            await _record_refusal(connection, origin, "bundle.update_refused", slug, _on_the_wire(changes), reason)
        elif changes:
            await bundles.set_settings(connection, replace(before, **changes))
            was = {name: getattr(before, name) for name in changes}
            detail = {"before": _on_the_wire(was), "after": _on_the_wire(changes)}
            event = audit.Event("bundle.updated", slug, reason=reason, detail=detail)
            await audit.append(connection, origin, event)
        after = await find_bundle(connection, slug)
    if refusal is not None:
        raise refusal
    if changes:
        _log.info("bundle_updated", slug=slug, changed=sorted(changes), reason=reason, actor=origin.actor)
    return after


def require_downloadable(version: Version) -> None:
    """Raise Forbidden where the version is quarantined."""
    if version.status == VersionStatus.QUARANTINED:
        raise Forbidden(
            f"{told(version)} Its artifacts can't be downloaded until an administrator releases it: "
            f"PATCH /job-bundles/{version.slug}/versions/{version.version}.",
            kind="version-quarantined",
            digest=version.digest,
            statusReason=version.status_reason,
            statusBy=version.status_by,
        )


def _checked_reason(subject: str, patch: VersionPatch) -> str | None:
    if patch.status is None and patch.immutable is None:
        raise InvalidRequest(
            f"say what of {subject} is to change: status, immutable or both.", kind="nothing-to-change"
        )
    reason = _stripped(patch.reason)
    if patch.status not in (None, VersionStatus.ACTIVE) and reason is None:
        raise InvalidRequest(
            f"{subject} can't become {patch.status} without a reason: say in a sentence what is wrong with it, and "
            "what to use instead.",
            kind="reason-required",
        )
    return reason


def _refused_patch(before: Version, patch: VersionPatch, reason: str | None, principal: Principal) -> Forbidden | None:
    """Why a token that is no administrator's may not do this, or None where it may."""
    subject = f"{before.slug}@{before.version}"
    if _changes_status(before, patch, reason) and VersionStatus.QUARANTINED in (before.status, patch.status):
        return _only_an_administrator(principal, f"put {subject} into quarantine, or take it out of it")
    if before.immutable and patch.immutable is False:
        return _only_an_administrator(principal, f"let {subject}, which is immutable, be replaced")
    return None


def _refused_settings(slug: str, changes: dict[str, Any], principal: Principal) -> Forbidden | None:
    if "allowed_platforms" in changes:
        return _only_an_administrator(principal, f"change the platforms that {slug} may be published for")
    if changes.get("immutable") is False:
        return _only_an_administrator(principal, f"let versions of {slug}, which is immutable, be replaced")
    return None


def _only_an_administrator(principal: Principal, what: str) -> Forbidden:
    return Forbidden(
        f"the token of “{principal.subject}” may not {what}: that needs the scope {Scope.ADMIN}. Ask an administrator.",
        requiredScope=Scope.ADMIN.value,
    )


def _changes_status(before: Version, patch: VersionPatch, reason: str | None) -> bool:
    kept = None if patch.status is VersionStatus.ACTIVE else reason
    return patch.status is not None and (before.status, before.status_reason) != (patch.status, kept)


async def _change_status(
    connection: Connection, before: Version, patch: VersionPatch, reason: str | None, origin: Origin
) -> None:
    status = patch.status
    if status is None or not _changes_status(before, patch, reason):
        return
    kept, actor = (None, None) if status is VersionStatus.ACTIVE else (reason, origin.actor)
    await versions.set_status(connection, before.id, status.value, reason=kept, actor=actor)
    was = VersionStatus(before.status)
    released = was is VersionStatus.QUARANTINED and status is not was
    action = _TAKEN_BACK[was] if released or status is VersionStatus.ACTIVE else f"version.{status}"
    event = audit.Event(
        action,
        f"{before.slug}@{before.version}",
        digest=before.digest,
        reason=reason,
        detail={"before": was.value, "after": status.value},
    )
    await audit.append(connection, origin, event)
    _log.info(
        "version_status_changed",
        slug=before.slug,
        version=before.version,
        before=was.value,
        after=status.value,
        reason=reason,
        actor=origin.actor,
    )


async def _change_immutable(
    connection: Connection, before: Version, patch: VersionPatch, reason: str | None, origin: Origin
) -> None:
    if patch.immutable is None or patch.immutable == before.immutable:
        return
    await versions.set_immutable(connection, before.id, immutable=patch.immutable)
    event = audit.Event(
        "version.updated",
        f"{before.slug}@{before.version}",
        digest=before.digest,
        reason=reason,
        detail={"before": {"immutable": before.immutable}, "after": {"immutable": patch.immutable}},
    )
    await audit.append(connection, origin, event)


async def _record_refusal(
    connection: Connection, origin: Origin, action: str, subject: str, wanted: dict[str, Any], reason: str | None
) -> None:
    detail = {"refusal": Forbidden.kind, "requested": wanted}
    await audit.append(connection, origin, audit.Event(action, subject, reason=reason, detail=detail))
    _log.info("change_refused", subject=subject, requested=wanted, actor=origin.actor)


def _wanted_of_bundle(patch: BundlePatch) -> dict[str, Any]:
    """What of the bundle is to be set, by the names of its fields."""
    wanted = patch.model_dump(exclude_unset=True, exclude={"reason"})
    if not wanted:
        raise InvalidRequest(
            "say what is to change: displayName, description, immutable, allowedPlatforms.", kind="nothing-to-change"
        )
    if patch.allowed_platforms is not None:
        wanted["allowed_platforms"] = check_patterns(patch.allowed_platforms)
    return {name: _stripped(value) if isinstance(value, str) else value for name, value in wanted.items()}


def _on_the_wire(fields: dict[str, Any]) -> dict[str, Any]:
    return {to_camel(name): value for name, value in fields.items()}


def _stripped(text: str | None) -> str | None:
    return (text or "").strip() or None
