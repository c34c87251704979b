"""What differs between two artifacts."""

from enum import StrEnum
from typing import Any

from pydantic import Field

from libs.common.models.base import Resource
from libs.common.models.bundles import NativeFile


class Difference(Resource):
    """What differs between two artifacts, by file. The lists hold the first paths only, the counts are whole.

    `changedBytes` is by how much the changed files grew, negative where they shrank.
    """

    added: int
    removed: int
    changed: int
    added_bytes: int
    removed_bytes: int
    changed_bytes: int
    platforms_added: list[str]
    platforms_removed: list[str]
    added_paths: list[str]
    removed_paths: list[str]
    changed_paths: list[str]


class DiffSide(Resource):
    """One of two artifacts that are compared, and what it is or was."""

    version: str
    revision: int
    digest: str
    content_digest: str
    size: int
    unpacked_size: int
    file_count: int
    platforms: list[str]


class NativeDifference(Resource):
    """Native files that only one of two artifacts has. The lists hold the first ones only, the counts are whole."""

    added: int
    removed: int
    added_files: list[NativeFile]
    removed_files: list[NativeFile]


class ManifestChange(Resource):
    """A key of the manifest whose value differs; null also stands for a key that is not there."""

    key: str
    before: Any
    after: Any


class ChangeKind(StrEnum):
    """What becomes of a member."""

    ADDED = "added"
    REMOVED = "removed"
    CHANGED = "changed"


class TextOmission(StrEnum):
    """Why a file is not compared by lines."""

    BINARY = "binary"
    TOO_LARGE = "too-large"


class DiffMember(Resource):
    """A member of one of two artifacts."""

    type: str
    size: int
    mode: str
    digest: str | None
    link_target: str | None


class DiffChange(Resource):
    """A member that differs. `text` is a unified diff, null where none was asked for or bytes of no file differ."""

    path: str
    change: ChangeKind
    before: DiffMember | None
    after: DiffMember | None
    text: str | None
    omitted: TextOmission | None


class ArtifactDiff(Resource):
    """What differs between two artifacts: the summary is whole on each page, the members are listed in pages."""

    before: DiffSide = Field(alias="from")
    after: DiffSide = Field(alias="to")
    summary: Difference
    native: NativeDifference
    manifest: list[ManifestChange]
    items: list[DiffChange]
    next: str | None = None
