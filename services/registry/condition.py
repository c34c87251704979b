"""What is written down when the object of an artifact is found damaged, and when it is whole again."""

from libs.common import audit
from libs.common.audit import Origin
from libs.common.database import Connection
from libs.common.log import get_logger
from services.registry.store import artifacts
from services.registry.store.artifacts import Artifact

_log = get_logger("registry")


async def record_damage(connection: Connection, artifact: Artifact, damage: str, origin: Origin) -> None:
    """Quarantine an artifact: from now on nobody is given it. Under the lock on the artifact."""
    async with connection.transaction():
        await artifacts.quarantine(connection, artifact.digest, damage)
        event = audit.Event(
            "artifact.quarantined",
            f"artifact/{artifact.digest}",
            digest=artifact.digest,
            reason=damage,
            detail={"objectKey": artifact.object_key, "size": artifact.size},
        )
        await audit.append(connection, origin, event)
    _log.error("artifact_quarantined", digest=artifact.digest, damage=damage)


async def record_repair(connection: Connection, artifact: Artifact, origin: Origin, *, subject: str | None) -> None:
    """The object is whole: nothing stands in the way of the artifact any more. Under the lock on the artifact.

    `subject` is the version whose publication brought the object, if one did.
    """
    was = _what_it_was(artifact)
    async with connection.transaction():
        await artifacts.restore(connection, artifact.digest)
        event = audit.Event(
            "artifact.repaired",
            f"artifact/{artifact.digest}",
            digest=artifact.digest,
            detail={"was": was, "publishedAs": subject},
        )
        await audit.append(connection, origin, event)
    _log.warning("artifact_repaired", digest=artifact.digest, was=was, subject=subject)


def _what_it_was(artifact: Artifact) -> str:
    if artifact.collected_at is not None or artifact.gc_claimed_at is not None:
        return "collected"
    return artifact.damage or "missing from the bucket"
