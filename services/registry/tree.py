"""The Merkle tree as the database keeps it: all leaves, and of the hashes above them every eighth level.

Leaves and kept hashes are read in tiles of up to 256, from which the levels between are computed: a proof in a tree of
a million events reads six tiles at most.
"""

from collections.abc import Iterable, Sequence

from libs.common.database import Connection
from libs.common.errors import Conflict
from services.registry.merkle import EMPTY_ROOT, Span, Subtree, fold, node_hash, whole_subtrees
from services.registry.store import trail

_KEPT_LEVELS = 8
_TILE = 1 << _KEPT_LEVELS


class TreeDamaged(Conflict):
    """Hashes of the tree are gone from the database; the message says which."""

    kind = "audit-trail-inconsistent"


def kept(subtrees: Iterable[tuple[Subtree, bytes]]) -> list[tuple[Subtree, bytes]]:
    """Those of the subtrees whose hashes are kept."""
    return [(subtree, hashed) for subtree, hashed in subtrees if subtree.level % _KEPT_LEVELS == 0]


class StoredTree:
    """The tree, read through one connection. What was read once is remembered."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._tiles: dict[tuple[int, int], dict[int, bytes]] = {}

    async def root(self, size: int) -> bytes:
        """The root that the tree had with `size` leaves. Raises TreeDamaged."""
        return await self.hash_of(Span(0, size)) if size else EMPTY_ROOT

    async def hashes(self, spans: Sequence[Span]) -> list[bytes]:
        """The hashes of spans of a path. Raises TreeDamaged."""
        return [await self.hash_of(span) for span in spans]

    async def hash_of(self, span: Span) -> bytes:
        """The hash of a span of a path, or of a whole tree. Raises TreeDamaged."""
        return fold([await self.subtree(subtree) for subtree in whole_subtrees(span)])

    async def subtree(self, subtree: Subtree) -> bytes:
        """The hash of a whole subtree. Raises TreeDamaged."""
        above_kept = subtree.level % _KEPT_LEVELS
        level = subtree.level - above_kept
        first = subtree.position << above_kept
        tile = await self._tile(level, first // _TILE)
        try:
            row = [tile[position] for position in range(first, first + (1 << above_kept))]
        except KeyError as missing:
            what = "leaf" if level == 0 else f"hash of level {level}"
            raise TreeDamaged(f"the tree of the audit trail has no {what} {missing.args[0]}.") from None
        while len(row) > 1:
            row = [node_hash(left, right) for left, right in zip(row[::2], row[1::2], strict=True)]
        return row[0]

    async def _tile(self, level: int, number: int) -> dict[int, bytes]:
        known = self._tiles.get((level, number))
        if known is None:
            first = number * _TILE
            known = dict(await trail.hashes_of(self._connection, level, first, first + _TILE))
            self._tiles[level, number] = known
        return known
