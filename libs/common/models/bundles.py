"""Bundles, versions, revisions, artifacts, and the older way to publish."""

from enum import StrEnum
from typing import Any

from pydantic import Field

from libs.common.models.base import Request, Resource, Timestamp


class VersionStatus(StrEnum):
    """Whether a version is offered. Only an active one can be `latest`."""

    ACTIVE = "active"
    DEPRECATED = "deprecated"  # new runs only by its digest
    YANKED = "yanked"  # new runs only where they say `allowYanked`
    QUARANTINED = "quarantined"  # neither run nor downloaded


class NativeFile(Resource):
    """A member of a bundle that only one platform can load."""

    path: str
    platform: str


class Artifact(Resource):
    """A tarball in the bucket, and what its bytes say."""

    digest: str
    content_digest: str
    size: int
    unpacked_size: int
    file_count: int
    compression: str
    object_key: str
    manifest: dict[str, Any]
    platforms: list[str]
    native: list[NativeFile]
    created_at: Timestamp


class ArtifactUses(Request):
    """Artifacts that runs use which have not ended."""

    digests: list[str] = Field(min_length=1, max_length=1000)


class ArtifactUsesNoted(Resource):
    """Of the artifacts whose use was noted, those that can't be had any more."""

    unavailable: list[str]


class Bundle(Resource):
    """A named thing that can be run."""

    slug: str
    display_name: str | None
    description: str | None
    metadata: dict[str, Any]
    latest: str | None
    immutable: bool
    allowed_platforms: list[str] | None
    created_at: Timestamp
    created_by: str


class Version(Resource):
    """A version and its current revision.

    The last four fields are null until it is replaced; `statusReason`, `statusBy` and `statusAt` while it is active.
    """

    slug: str
    version: str
    revision: int
    digest: str
    content_digest: str
    size: int
    unpacked_size: int
    file_count: int
    platforms: list[str]
    status: VersionStatus
    status_reason: str | None
    status_by: str | None
    status_at: Timestamp | None
    deprecation_reason: str | None
    immutable: bool
    manifest: dict[str, Any]
    published_at: Timestamp
    published_by: str
    replaced_at: Timestamp | None
    replaced_by: str | None
    reason: str | None
    previous_digest: str | None


class RevisionOrigin(StrEnum):
    """How a revision came about."""

    PUBLISHED = "published"
    REPLACED = "replaced"
    ROLLED_BACK = "rolled_back"


class Revision(Resource):
    """One publication of a version, or a way back to the revision `rolledBackTo`. `buildId` made the artifact."""

    revision: int
    origin: RevisionOrigin
    rolled_back_to: int | None
    digest: str
    content_digest: str
    size: int
    unpacked_size: int
    file_count: int
    platforms: list[str]
    published_at: Timestamp
    published_by: str
    reason: str | None
    previous_digest: str | None
    build_id: str | None
    collected_at: Timestamp | None = Field(None, description="Since when its artifact is gone, as nothing kept it.")
    damaged_at: Timestamp | None = Field(None, description="Since when its artifact is quarantined as damaged.")


class RollbackRequest(Request):
    """Point a version at an artifact that it was: exactly one of `toRevision` and `toDigest`."""

    to_revision: int | None = Field(None, ge=1, le=2**31 - 1, description="The revision to go back to.")
    to_digest: str | None = Field(None, description="The artifact to go back to.")
    reason: str | None = Field(None, max_length=1000, description="Why; needed.")
    expected_digest: str | None = Field(None, description="What the version is now, as the caller believes; else 412.")


class FileEntry(Resource):
    """One member of an artifact."""

    path: str
    type: str
    size: int
    mode: str
    digest: str | None
    link_target: str | None


class VersionPatch(Request):
    """What is to change of a version. Every status but `active` needs a reason."""

    status: VersionStatus | None = None
    immutable: bool | None = None
    reason: str | None = Field(None, max_length=1000)


class BundlePatch(Request):
    """What is to change of a bundle; what is left out stays.

    `allowedPlatforms` are patterns such as `linux`, `linux/x64` and `linux/x64/glibc`, or `any`; null is the registry's
    policy.
    """

    display_name: str | None = Field(None, max_length=200)
    description: str | None = Field(None, max_length=10_000)
    immutable: bool = False
    allowed_platforms: list[str] | None = Field(None, min_length=1, max_length=50)
    reason: str | None = Field(None, max_length=1000)


class Resolution(Resource):
    """What a reference such as `latest`, `1.2.0` or `sha256:…` means right now, with all that a run needs."""

    slug: str
    version: str
    revision: int
    status: VersionStatus
    status_reason: str | None = None
    status_by: str | None = None
    status_at: Timestamp | None = None
    artifact: Artifact


class LegacyArtifact(Request):
    """The tarball inside the older JSON body. `data` is base64: standard or url-safe, or a data URL."""

    data: str
    filename: str | None = None
    content_type: str | None = None
    checksum: str | None = Field(None, pattern="^[0-9a-fA-F]{64}$", description="SHA-256 of the bytes, hexadecimal")


class LegacyPublish(Request):
    """The older JSON body of `POST /job-bundles`."""

    slug: str
    version: str
    manifest: dict[str, Any]
    capability_flags: list[str] = Field(default_factory=list)
    immutable: bool = False
    metadata: dict[str, Any] = Field(default_factory=dict)
    description: str | None = None
    display_name: str | None = None
    force: bool = False
    artifact: LegacyArtifact


class LegacyPublished(Resource):
    """The answer to the older JSON body, below `data`."""

    bundle: Bundle
    version: Version


class LegacyAnswer(Resource):
    """The envelope of the older answer."""

    data: LegacyPublished
