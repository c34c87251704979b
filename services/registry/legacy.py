"""The older way to publish: a JSON body with the tarball in base64. It becomes a proposal and bytes like any other."""

import base64
import binascii
import hashlib
import re
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager

from libs.common.errors import InvalidRequest, Unprocessable
from libs.common.identifiers import check_slug, check_version
from libs.common.models import LegacyArtifact, LegacyPublish
from services.registry.gate import PlatformNotAllowed
from services.registry.store.bundles import Description
from services.registry.verdict import Proposal

REASON = "replaced through POST /job-bundles"

_CHUNK_BYTES = 1024 * 1024
_DATA_URL = re.compile(r"data:[^,]{0,256};base64,", re.IGNORECASE)
_STANDARD_ALPHABET = str.maketrans("-_", "+/", " \t\r\n")


def read_proposal(body: LegacyPublish) -> Proposal:
    """What the body asks for. InvalidRequest where its parts contradict each other."""
    check_slug(body.slug)
    check_version(body.version)
    if body.manifest.get("version") != body.version:
        raise InvalidRequest(
            f"manifest.version is {body.manifest.get('version')!r}, but version is {body.version!r}. "
            "They must be the same.",
            kind="manifest-mismatch",
            field="version",
        )
    if body.manifest.get("name", body.slug) != body.slug:
        raise InvalidRequest(
            f"manifest.name is {body.manifest['name']!r}, but slug is {body.slug!r}. They must be the same.",
            kind="manifest-mismatch",
            field="name",
        )
    metadata = dict(body.metadata)
    if body.capability_flags:
        metadata["capabilityFlags"] = body.capability_flags
    return Proposal(
        body.slug,
        body.version,
        force=body.force,
        default_reason=REASON,
        immutable=body.immutable,
        description=Description(body.display_name, body.description, metadata),
    )


def decode_artifact(artifact: LegacyArtifact) -> bytes:
    """The bytes of the tarball. InvalidRequest where they are not base64 or not what the checksum says. Blocks."""
    text = artifact.data
    prefix = _DATA_URL.match(text)
    if prefix:
        text = text[prefix.end() :]
    elif text.startswith("data:"):
        raise InvalidRequest("artifact.data is a data URL that is not base64: expected data:…;base64,…")
    text = text.translate(_STANDARD_ALPHABET).rstrip("=")
    try:
        data = base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
    except (binascii.Error, ValueError):
        raise InvalidRequest(
            "artifact.data is not base64 (RFC 4648, standard or URL-safe alphabet, with or without padding).",
            kind="invalid-base64",
        ) from None
    found = hashlib.sha256(data).hexdigest()
    if artifact.checksum is not None and artifact.checksum.lower() != found:
        raise InvalidRequest(
            f"artifact.checksum is {artifact.checksum.lower()}, but the {len(data)} bytes in artifact.data have the "
            f"SHA-256 {found}. They were damaged on the way, or the checksum is of something else.",
            kind="checksum-mismatch",
        )
    return data


async def chunks_of(data: bytes) -> AsyncIterator[bytes]:
    """The bytes as they would have been streamed."""
    for start in range(0, len(data), _CHUNK_BYTES):
        yield data[start : start + _CHUNK_BYTES]


@contextmanager
def refusals() -> Iterator[None]:
    """Raise what is wrong with the tarball as what is wrong with the request: this body never knew the difference."""
    try:
        yield
    except PlatformNotAllowed:
        raise  # nothing is wrong with it but where it can run
    except Unprocessable as error:
        raise InvalidRequest(error.message, kind=error.kind, **error.details) from error
