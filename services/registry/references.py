"""Publishing an artifact that the registry has already: named by its digest, instead of sent again."""

from libs.common.archive import EntryType
from libs.common.auth import Principal, Scope
from libs.common.database import Connection, Pool
from services.registry import catalog
from services.registry.inspection import FileRecord, Inspection
from services.registry.store import artifacts
from services.registry.store.artifacts import Artifact


async def find_readable(pool: Pool, digest: str, slug: str, principal: Principal) -> Artifact:
    """The artifact that somebody names who publishes it as a version of `slug`.

    A digest gives no more than a download would: raises Forbidden unless the publisher may read that bundle, and
    NotFound for what only other bundles have. NotFound, Gone or Conflict where the artifact can't be had.
    """
    principal.require(Scope.BUNDLES_READ, slug)
    return await catalog.get_artifact(pool, digest, principal.patterns(Scope.BUNDLES_READ))


async def inspection_of(connection: Connection, artifact: Artifact) -> Inspection:
    """What the inspection of the artifact found when it was uploaded."""
    members = await artifacts.list_files(connection, artifact.digest, after=None, limit=None)
    return Inspection(
        digest=artifact.digest,
        content_digest=artifact.content_digest,
        size=artifact.size,
        unpacked_size=artifact.unpacked_size,
        file_count=artifact.file_count,
        compression=artifact.compression,
        manifest=artifact.manifest,
        files=[
            FileRecord(file.path, EntryType(file.type), file.size, file.mode, file.digest, file.link_target)
            for file in members
        ],
        native=[(item["path"], item["platform"]) for item in artifact.native],
        platforms=artifact.platforms,
    )
