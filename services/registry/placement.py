"""The objects of artifacts: under a key made of their digest, written from an upload. These functions block."""

from dataclasses import dataclass

from libs.common.object_errors import ObjectStoreUnavailable
from libs.common.objects import ObjectStore, artifact_key
from services.registry.incoming import Incoming

_CONTENT_TYPES = {"gzip": "application/gzip", "zstd": "application/zstd"}


@dataclass(frozen=True, slots=True)
class Label:
    """What a person reads of an artifact in the bucket's console."""

    slug: str
    version: str
    built_by: str


def content_type_of(compression: str) -> str:
    """The media type of an artifact."""
    return _CONTENT_TYPES[compression]


def is_whole(objects: ObjectStore, key: str, size: int) -> bool:
    """Whether the object is there in its full length."""
    found = objects.head(key)
    return found is not None and found.size == size


def place(objects: ObjectStore, incoming: Incoming, label: Label, *, rewrite: bool) -> bool:
    """See to it that the artifact's object is there, from the upload where it is missing or of the wrong length.

    `rewrite` writes it in any case: the only way to mend an object of the right length with the wrong bytes.
    Returns whether it was missing or of the wrong length.
    """
    inspection = incoming.inspection
    key = artifact_key(inspection.digest, inspection.compression)
    whole = is_whole(objects, key, inspection.size)
    if whole and not rewrite:
        return False
    # Onto itself, where the parts were sent to this key: that only gives it what the inspection found.
    objects.copy(
        incoming.complete(),
        key,
        content_type=content_type_of(inspection.compression),
        metadata=_metadata(label, inspection.content_digest, inspection.platforms),
    )
    if not is_whole(objects, key, inspection.size):
        raise ObjectStoreUnavailable(f"the S3 server did not keep the copy {key} whole. Publish again.")
    return not whole


def _metadata(label: Label, content_digest: str, platforms: list[str]) -> dict[str, str]:
    values = {
        "slug": label.slug,
        "version": label.version,
        "platforms": ",".join(platforms) or "any",
        "content-digest": content_digest,
        "built-by": label.built_by,
    }
    # Headers are ASCII; a subject given on the command line need not be.
    return {name: value.encode("ascii", "backslashreplace").decode() for name, value in values.items()}
