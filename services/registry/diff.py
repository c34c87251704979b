"""What differs between any two artifacts that a bundle has or had: member by member, with the lines of texts."""

import asyncio
import re
import threading
from collections.abc import Sequence
from dataclasses import dataclass

from libs.common import models
from libs.common.completion import to_the_end
from libs.common.cursors import encode_cursor
from libs.common.database import Connection, Pool
from libs.common.errors import InvalidRequest, NotFound
from libs.common.identifiers import check_digest, check_slug
from libs.common.models import ChangeKind, DiffChange, DiffMember, DiffSide, TextOmission
from libs.common.objects import ObjectStore
from libs.common.paging import Wanted
from services.registry import catalog
from services.registry.availability import require_available
from services.registry.diff_contents import read_members
from services.registry.diff_text import Effort, unified_diff
from services.registry.difference import between
from services.registry.standing import require_downloadable
from services.registry.store import artifacts, differences, resolutions, versions
from services.registry.store.artifacts import Artifact
from services.registry.store.differences import Change, Member

_REVISION = re.compile(r"(?P<version>.+)@r(?P<revision>[1-9][0-9]{0,8})")
_SHOWN_NATIVE = 20
_STEPS = 2_000_000  # one to three seconds of one processor
_AT_ONCE = 2


@dataclass(frozen=True, slots=True)
class TextBounds:
    """How much is compared by lines: files of up to `file_bytes`, and in one answer `answer_bytes` of files."""

    file_bytes: int
    answer_bytes: int

    def allow(self, change: Change) -> bool:
        """Whether the file is small enough, before and after."""
        return all(member.size <= self.file_bytes for member in _members(change))


@dataclass(frozen=True, slots=True)
class Side:
    """What a reference means."""

    version: str
    revision: int
    artifact: Artifact


class Differ:
    """Compares artifacts. For texts they are read out of the bucket, two at a time; the others wait."""

    def __init__(self, pool: Pool, objects: ObjectStore, bounds: TextBounds) -> None:
        self._pool = pool
        self._objects = objects
        self._bounds = bounds
        self._readers = asyncio.Semaphore(_AT_ONCE)

    async def diff(self, slug: str, before: str, after: str, wanted: Wanted, *, text: bool) -> models.ArtifactDiff:
        """What has to be added, removed and changed in `before` to get `after`, a page of it with the whole summary.

        A reference is `latest`, a version, `version@rN`, or a digest. `text` adds the lines that differ; the page may
        then be shorter than was asked for. Raises NotFound for what the bundle never had, InvalidRequest for a cursor
        of another comparison. With `text` also Forbidden where a version is quarantined, Gone or Conflict where an
        artifact was collected or is quarantined, and Unavailable where its object is damaged or the bucket is away.
        """
        old, new = await self._side(slug, before), await self._side(slug, after)
        digests = old.artifact.digest, new.artifact.digest
        async with self._pool.acquire() as connection:
            summary = await between(connection, old.artifact, new.artifact)
            changes = await differences.list_changes(
                connection, *digests, after_path=_place(wanted.key, digests), limit=wanted.limit + 1
            )
        shown = changes[: wanted.limit]
        texts: dict[str, str | TextOmission] = {}
        if text:
            for side in (old, new):
                require_downloadable(await catalog.get_version(self._pool, slug, side.version))
            shown = self._with_room(shown)
            texts = await self._texts(old.artifact, new.artifact, shown)
        return models.ArtifactDiff(
            before=_shown_side(old),
            after=_shown_side(new),
            summary=summary,
            native=_native(old.artifact, new.artifact),
            manifest=_manifest(old.artifact, new.artifact),
            items=[_shown_change(change, texts.get(change.path)) for change in shown],
            next=encode_cursor(" ".join((*digests, shown[-1].path))) if len(changes) > len(shown) else None,
        )

    async def _side(self, slug: str, reference: str) -> Side:
        if reference.startswith("sha256:"):
            return await self._side_by_digest(slug, check_digest(reference))
        wanted = _REVISION.fullmatch(reference)
        found = await catalog.get_version(self._pool, slug, wanted["version"] if wanted else reference)
        number = int(wanted["revision"]) if wanted else found.revision
        async with self._pool.acquire() as connection:
            revision = await versions.find_revision(connection, found.id, number)
            if revision is None:
                raise NotFound(
                    f"{slug}@{found.version} has no revision {number}: the newest is {found.revision}.",
                    kind="revision-not-found",
                )
            return Side(found.version, number, await _artifact(connection, revision.digest))

    async def _side_by_digest(self, slug: str, digest: str) -> Side:
        async with self._pool.acquire() as connection:
            found = await resolutions.by_digest(connection, check_slug(slug), digest)
            if found is None:
                raise NotFound(
                    f"no revision of {slug} is or was {digest}. Only artifacts of one bundle are compared.",
                    kind="digest-not-found",
                )
        return Side(found.version, found.revision, found.artifact)

    def _with_room(self, changes: Sequence[Change]) -> list[Change]:
        """The first of these whose texts fit into one answer."""
        shown: list[Change] = []
        used = 0
        for change in changes:
            if _is_text_wanted(change) and self._bounds.allow(change):
                used += sum(member.size for member in _members(change))
                if shown and used > self._bounds.answer_bytes:
                    break
            shown.append(change)
        return shown

    async def _texts(
        self, before: Artifact, after: Artifact, changes: Sequence[Change]
    ) -> dict[str, str | TextOmission]:
        """By path the lines that differ, or why they are left out."""
        asked = [change for change in changes if _is_text_wanted(change)]
        small = [change for change in asked if self._bounds.allow(change)]
        texts: dict[str, str | TextOmission] = {change.path: TextOmission.TOO_LARGE for change in asked}
        if small:
            async with self._pool.acquire() as connection:
                for artifact in (before, after):
                    await require_available(connection, artifact)
            abandoned = threading.Event()
            async with self._readers:
                working = asyncio.ensure_future(asyncio.to_thread(self._compare, before, after, small, abandoned))
                try:
                    texts |= await asyncio.shield(working)
                except asyncio.CancelledError:
                    abandoned.set()
                    await to_the_end(asyncio.wait((working,)))
                    if not working.cancelled():
                        working.exception()
                    raise
        return texts

    def _compare(
        self, before: Artifact, after: Artifact, changes: Sequence[Change], abandoned: threading.Event
    ) -> dict[str, str | TextOmission]:
        old_sizes = {change.before.source: change.before.size for change in changes if change.before}
        new_sizes = {change.after.source: change.after.size for change in changes if change.after}
        old = read_members(self._objects, before, old_sizes, abandoned) if old_sizes else {}
        new = read_members(self._objects, after, new_sizes, abandoned) if new_sizes else {}
        effort = Effort(_STEPS)
        texts: dict[str, str | TextOmission] = {}
        for change in changes:
            text = unified_diff(
                change.path,
                old[change.before.source] if change.before else None,
                new[change.after.source] if change.after else None,
                effort,
            )
            texts[change.path] = TextOmission.BINARY if text is None else text
        return texts


async def _artifact(connection: Connection, digest: str) -> Artifact:
    found = await artifacts.get(connection, digest)
    if found is None:
        raise LookupError(f"a revision is {digest}, whose row is never removed")
    return found


def _place(key: str | None, digests: tuple[str, str]) -> str | None:
    """The path after which the page begins. A cursor is of use for the two artifacts only that it was made for."""
    if key is None:
        return None
    *compared, path = key.split(" ", 2)
    if tuple(compared) != digests:
        raise InvalidRequest(
            "the cursor belongs to a comparison of other artifacts: what a reference means may have changed since the "
            "page before. Begin again without a cursor, and name digests.",
            kind="invalid-cursor",
        )
    return path


def _members(change: Change) -> list[Member]:
    return [member for member in (change.before, change.after) if member is not None]


def _is_text_wanted(change: Change) -> bool:
    """Whether bytes of a file differ, as opposed to its mode, or to what kind of member it is."""
    digests = [member.digest for member in _members(change) if member.type == "file"]
    return len(digests) == len(_members(change)) and (len(digests) == 1 or digests[0] != digests[1])


def _shown_side(side: Side) -> DiffSide:
    artifact = side.artifact
    return DiffSide(
        version=side.version,
        revision=side.revision,
        digest=artifact.digest,
        content_digest=artifact.content_digest,
        size=artifact.size,
        unpacked_size=artifact.unpacked_size,
        file_count=artifact.file_count,
        platforms=artifact.platforms,
    )


def _shown_change(change: Change, text: str | TextOmission | None) -> DiffChange:
    kind = ChangeKind.ADDED if change.before is None else ChangeKind.CHANGED if change.after else ChangeKind.REMOVED
    omitted = text if isinstance(text, TextOmission) else None
    return DiffChange(
        path=change.path,
        change=kind,
        before=_shown_member(change.before),
        after=_shown_member(change.after),
        text=text if omitted is None else None,
        omitted=omitted,
    )


def _shown_member(member: Member | None) -> DiffMember | None:
    if member is None:
        return None
    return DiffMember(
        type=member.type,
        size=member.size,
        mode=f"{member.mode:04o}",
        digest=f"sha256:{member.digest.hex()}" if member.digest else None,
        link_target=member.link_target,
    )


def _native(before: Artifact, after: Artifact) -> models.NativeDifference:
    old, new = ({(file["path"], file["platform"]) for file in side.native} for side in (before, after))
    added, removed = sorted(new - old), sorted(old - new)
    return models.NativeDifference(
        added=len(added),
        removed=len(removed),
        added_files=[models.NativeFile(path=path, platform=platform) for path, platform in added[:_SHOWN_NATIVE]],
        removed_files=[models.NativeFile(path=path, platform=platform) for path, platform in removed[:_SHOWN_NATIVE]],
    )


def _manifest(before: Artifact, after: Artifact) -> list[models.ManifestChange]:
    old, new = before.manifest, after.manifest
    return [
        models.ManifestChange(key=key, before=old.get(key), after=new.get(key))
        for key in sorted(old.keys() | new.keys())
        if (key in old, old.get(key)) != (key in new, new.get(key))
    ]
