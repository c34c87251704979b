"""Merkle trees as transparency logs have them (RFC 9162, section 2.1, with SHA-256).

Leaves are counted from 0. A tree of n leaves contains every smaller tree, whose root follows from its size. Nothing
here knows where hashes are kept: paths are spans of leaves, and whoever keeps the hashes says what each span has.
"""

import hashlib
from collections.abc import Iterator, Sequence
from typing import NamedTuple

EMPTY_ROOT = hashlib.sha256(b"").digest()
"""The root of a tree without leaves."""


class Span(NamedTuple):
    """The leaves from `start` up to, and without, `end`."""

    start: int
    end: int


class Subtree(NamedTuple):
    """A whole subtree of 2^level leaves, the `position`th of its kind from the left; a leaf has level 0."""

    level: int
    position: int


def leaf_hash(data: bytes) -> bytes:
    """The hash of a leaf."""
    return hashlib.sha256(b"\x00" + data).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    """The hash of what is above two hashes."""
    return hashlib.sha256(b"\x01" + left + right).digest()


def fold(hashes: Sequence[bytes]) -> bytes:
    """The hash above whole subtrees that lie side by side and become smaller to the right."""
    if not hashes:
        return EMPTY_ROOT
    above = hashes[-1]
    for left in reversed(hashes[:-1]):
        above = node_hash(left, above)
    return above


def whole_subtrees(span: Span) -> Iterator[Subtree]:
    """The largest whole subtrees that a span of a path or a tree is made of, from left to right."""
    start = span.start
    while start < span.end:
        level = (span.end - start).bit_length() - 1
        yield Subtree(level, start >> level)
        start += 1 << level


def inclusion_path(index: int, size: int) -> list[Span]:
    """The spans whose hashes prove that leaf `index` is in the tree of `size`, from the leaf up: PATH of RFC 9162."""
    if not 0 <= index < size:
        raise ValueError(f"a tree of {size} leaves has no leaf {index}")
    path = []
    start, end = 0, size
    while end - start > 1:
        middle = start + _split(end - start)
        if index < middle:
            path.append(Span(middle, end))
            end = middle
        else:
            path.append(Span(start, middle))
            start = middle
    return path[::-1]


def consistency_path(old: int, new: int) -> list[Span]:
    """The spans whose hashes prove that the tree of size `new` begins with that of size `old`: PROOF of RFC 9162."""
    if not 0 < old <= new:
        raise ValueError(f"there is no proof from a tree of {old} leaves to one of {new}")
    path = []
    start, end = 0, new
    while end != old:
        middle = start + _split(end - start)
        if old <= middle:
            path.append(Span(middle, end))
            end = middle
        else:
            path.append(Span(start, middle))
            start = middle
    if start > 0:  # otherwise it is the old root, which the verifier has
        path.append(Span(start, end))
    return path[::-1]


def root_from_inclusion(index: int, size: int, leaf: bytes, proof: Sequence[bytes]) -> bytes:
    """The root that a proof of inclusion leads to (RFC 9162, 2.1.3.2); ValueError where its length can't be right."""
    if not 0 <= index < size:
        raise ValueError(f"a tree of {size} leaves has no leaf {index}")
    node, last, above = index, size - 1, leaf
    for hashed in proof:
        if last == 0:
            raise ValueError("the proof is too long")
        if node & 1 or node == last:
            above = node_hash(hashed, above)
            while not node & 1 and node:
                node, last = node >> 1, last >> 1
        else:
            above = node_hash(above, hashed)
        node, last = node >> 1, last >> 1
    if last != 0:
        raise ValueError("the proof is too short")
    return above


def is_consistent(old: int, new: int, old_root: bytes, new_root: bytes, proof: Sequence[bytes]) -> bool:
    """Whether a proof shows that the tree of size `new` begins with the one of size `old` (RFC 9162, 2.1.4.2)."""
    if not 0 < old <= new:
        raise ValueError(f"there is no proof from a tree of {old} leaves to one of {new}")
    if old == new:
        return not proof and old_root == new_root
    hashes = [old_root, *proof] if old & (old - 1) == 0 else list(proof)
    if not hashes:
        return False
    node, last = old - 1, new - 1
    while node & 1:
        node, last = node >> 1, last >> 1
    above_old = above_new = hashes[0]
    for hashed in hashes[1:]:
        if last == 0:
            return False
        if node & 1 or node == last:
            above_old, above_new = node_hash(hashed, above_old), node_hash(hashed, above_new)
            while not node & 1 and node:
                node, last = node >> 1, last >> 1
        else:
            above_new = node_hash(above_new, hashed)
        node, last = node >> 1, last >> 1
    return last == 0 and above_old == old_root and above_new == new_root


class Frontier:
    """The right edge of a tree that grows: what is needed of `size` leaves to append others and to know the root."""

    def __init__(self, size: int = 0, hashes: Sequence[bytes] = ()) -> None:
        """A tree of `size` leaves; `hashes` are those of its whole subtrees, as `whole_subtrees` has them."""
        if len(hashes) != size.bit_count():
            raise ValueError(f"a tree of {size} leaves has {size.bit_count()} whole subtrees, not {len(hashes)}")
        self.size = size
        self._hashes = list(hashes)

    @property
    def root(self) -> bytes:
        """The root of the tree as it is."""
        return fold(self._hashes)

    def append(self, leaf: bytes) -> list[tuple[Subtree, bytes]]:
        """Append a leaf by its hash; the subtrees that became whole by it, the leaf itself not counted."""
        completed = []
        above, position, level = leaf, self.size, 0
        while position & 1:
            above = node_hash(self._hashes.pop(), above)
            position, level = position >> 1, level + 1
            completed.append((Subtree(level, position), above))
        self._hashes.append(above)
        self.size += 1
        return completed


def _split(size: int) -> int:
    """The largest power of two below `size`."""
    return 1 << ((size - 1).bit_length() - 1)
