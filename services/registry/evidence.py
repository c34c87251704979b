"""What the registry hands out so that others can check its audit trail: proofs and exports."""

import base64
from collections.abc import AsyncGenerator

from libs.common import models
from libs.common.audit import RecordedEvent
from libs.common.database import Connection, Pool
from libs.common.errors import Conflict, InvalidRequest, NotFound
from services.registry.canonical import canonical_json, event_members, hash_of_event
from services.registry.checkpoints import Checkpoints
from services.registry.merkle import consistency_path, inclusion_path
from services.registry.store import trail
from services.registry.tree import StoredTree

_PAGE = 1000


async def find(connection: Connection, event_id: int) -> tuple[RecordedEvent, int | None]:
    """An event and its position, which is None until it is sealed; NotFound."""
    found = await trail.find_event(connection, event_id)
    if found is None:
        raise NotFound(f"the audit trail has no event {event_id}.", kind="event-not-found")
    return found


async def prove_inclusion(connection: Connection, checkpoints: Checkpoints, event_id: int) -> models.InclusionProof:
    """The proof that the newest checkpoint signs an event.

    NotFound for the event or where nothing is signed, Conflict while no checkpoint has the event, TreeDamaged.
    """
    event, position = await find(connection, event_id)
    newest = await checkpoints.newest(connection)
    if position is None or position >= newest.tree_size:
        raise Conflict(
            f"event {event_id} is newer than the newest checkpoint, which signs {newest.tree_size} events. Ask again "
            "in a minute.",
            kind="event-not-sealed",
            treeSize=newest.tree_size,
        )
    hashes = await StoredTree(connection).hashes(inclusion_path(position, newest.tree_size))
    return models.InclusionProof(
        event_id=event.id,
        leaf=canonical_json(event_members(event)),
        leaf_hash=_base64(hash_of_event(event)),
        leaf_index=position,
        tree_size=newest.tree_size,
        hashes=[_base64(hashed) for hashed in hashes],
        checkpoint=newest.note,
    )


async def prove_consistency(connection: Connection, first: int, second: int) -> models.ConsistencyProof:
    """The proof that the tree of size `second` begins with that of size `first`. InvalidRequest, Conflict."""
    if first > second:
        raise InvalidRequest(f"from must not be larger than to, but {first} is larger than {second}.")
    size = await trail.tree_size(connection)
    if second > size:
        raise Conflict(f"the tree has {size} events, not yet {second}.", kind="tree-too-small", treeSize=size)
    tree = StoredTree(connection)
    return models.ConsistencyProof(
        first=first,
        second=second,
        first_root=_base64(await tree.root(first)),
        second_root=_base64(await tree.root(second)),
        hashes=[_base64(hashed) for hashed in await tree.hashes(consistency_path(first, second))],
    )


async def export(pool: Pool, wanted: trail.EventFilter) -> AsyncGenerator[trail.ExportedEvent, None]:
    """Every event that matches, in the order of the tree, and then those that are not sealed yet.

    What is sealed stays where it is, so that no connection is held while a slow reader reads; the end, with what is not
    sealed yet, is read as it is at one moment.
    """
    after = -1
    while True:
        async with pool.acquire() as connection, connection.transaction(isolation="repeatable_read", readonly=True):
            page = await trail.export(connection, wanted, after=after, limit=_PAGE)
            unsealed = [event async for event in trail.export_unsealed(connection, wanted)] if len(page) < _PAGE else []
        for event in (*page, *unsealed):
            yield event
        if len(page) < _PAGE:
            return
        after = page[-1].position or 0


def _base64(hashed: bytes) -> str:
    return base64.b64encode(hashed).decode()
