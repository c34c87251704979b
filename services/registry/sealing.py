"""Sealing: committed events get their places in the Merkle tree.

A place is given in the order of sealing, never by id: ids are drawn before the commit, so an event with a lower id may
become visible after one with a higher id. Appending writes the event's id to a table of those that wait, in the same
transaction, and whatever is visible there has been committed. So appending waits for nobody, a transaction that takes
its time delays nobody's sealing, and its event is sealed when it commits.
"""

import asyncio

from libs.common.audit import RecordedEvent
from libs.common.completion import in_thread
from libs.common.database import Connection, Pool
from services.registry.canonical import hash_of_event
from services.registry.merkle import Frontier, Span, Subtree, whole_subtrees
from services.registry.store import trail
from services.registry.tree import StoredTree, kept

_BATCH = 1000


async def seal(pool: Pool) -> int:
    """Give every committed event its place; how many there were. Where another registry is at it, none."""
    sealed = 0
    while True:
        async with pool.acquire() as connection:
            batch = await seal_batch(connection)
        sealed += batch
        if batch < _BATCH:
            return sealed
        await asyncio.sleep(0)


async def seal_batch(connection: Connection) -> int:
    """Give up to a thousand committed events their places; how many there were."""
    async with connection.transaction():
        if not await trail.try_to_be_sealer(connection):
            return 0
        # A new statement sees what the sealer before committed.
        events = await trail.awaiting_seal(connection, _BATCH)
        if not events:
            return 0
        size = await trail.tree_size(connection)
        tree = StoredTree(connection)
        edge = [await tree.subtree(subtree) for subtree in whole_subtrees(Span(0, size))]
        leaves, subtrees = await in_thread(_grow, Frontier(size, edge), events)
        await trail.insert_leaves(connection, size, leaves)
        await trail.insert_subtrees(connection, subtrees)
    return len(events)


def _grow(
    frontier: Frontier, events: list[RecordedEvent]
) -> tuple[list[tuple[int, bytes]], list[tuple[Subtree, bytes]]]:
    """Append the events: ids with the hashes of the leaves, and the hashes above that are to be kept."""
    leaves, whole = [], []
    for event in events:
        hashed = hash_of_event(event)
        leaves.append((event.id, hashed))
        whole += kept(frontier.append(hashed))
    return leaves, whole
