"""Merkle trees against the definitions of RFC 9162, written down as they stand there."""

import hashlib
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.registry.merkle import (
    EMPTY_ROOT,
    Frontier,
    Span,
    consistency_path,
    fold,
    inclusion_path,
    is_consistent,
    leaf_hash,
    root_from_inclusion,
    whole_subtrees,
)

_LEAVES = st.lists(st.binary(max_size=4), min_size=1, max_size=80)


def _root(data: Sequence[bytes]) -> bytes:
    """MTH."""
    if not data:
        return hashlib.sha256().digest()
    if len(data) == 1:
        return hashlib.sha256(b"\x00" + data[0]).digest()
    k = _largest_power_below(len(data))
    return hashlib.sha256(b"\x01" + _root(data[:k]) + _root(data[k:])).digest()


def _path(index: int, data: Sequence[bytes]) -> list[bytes]:
    """PATH."""
    if len(data) == 1:
        return []
    k = _largest_power_below(len(data))
    if index < k:
        return [*_path(index, data[:k]), _root(data[k:])]
    return [*_path(index - k, data[k:]), _root(data[:k])]


def _subproof(old: int, data: Sequence[bytes], *, known: bool) -> list[bytes]:
    """SUBPROOF."""
    if old == len(data):
        return [] if known else [_root(data)]
    k = _largest_power_below(len(data))
    if old <= k:
        return [*_subproof(old, data[:k], known=known), _root(data[k:])]
    return [*_subproof(old - k, data[k:], known=False), _root(data[:k])]


def _largest_power_below(size: int) -> int:
    k = 1
    while k * 2 < size:
        k *= 2
    return k


def _hashes(data: Sequence[bytes], spans: Sequence[Span]) -> list[bytes]:
    return [_root(data[span.start : span.end]) for span in spans]


@given(_LEAVES)
def test_a_tree_that_grows_has_the_root_of_one_that_is_whole(data: list[bytes]) -> None:
    frontier = Frontier()
    assert frontier.root == EMPTY_ROOT == _root([])
    for number, leaf in enumerate(data, 1):
        for subtree, hashed in frontier.append(leaf_hash(leaf)):
            start = subtree.position << subtree.level
            assert hashed == _root(data[start : start + (1 << subtree.level)])
        assert frontier.root == _root(data[:number])


@given(_LEAVES)
def test_a_tree_goes_on_from_its_whole_subtrees(data: list[bytes]) -> None:
    spans = [Span(t.position << t.level, (t.position + 1) << t.level) for t in whole_subtrees(Span(0, len(data)))]
    hashes = _hashes(data, spans)
    assert fold(hashes) == _root(data)
    frontier = Frontier(len(data), hashes)
    frontier.append(leaf_hash(b"more"))
    assert frontier.root == _root([*data, b"more"])


@settings(max_examples=60)
@given(_LEAVES, st.data())
def test_inclusion_is_proved_as_the_standard_says_and_of_nothing_else(data: list[bytes], draw: st.DataObject) -> None:
    index = draw.draw(st.integers(0, len(data) - 1))
    proof = _hashes(data, inclusion_path(index, len(data)))
    assert proof == _path(index, data)
    leaf = leaf_hash(data[index])
    assert root_from_inclusion(index, len(data), leaf, proof) == _root(data)
    assert root_from_inclusion(index, len(data), leaf_hash(data[index] + b"!"), proof) != _root(data)
    with pytest.raises(ValueError, match="too long"):
        root_from_inclusion(index, len(data), leaf, [*proof, b"\0" * 32])
    if proof:
        with pytest.raises(ValueError, match="too short"):
            root_from_inclusion(index, len(data), leaf, proof[:-1])


@settings(max_examples=60)
@given(_LEAVES, st.data())
def test_consistency_is_proved_as_the_standard_says_and_of_nothing_else(data: list[bytes], draw: st.DataObject) -> None:
    new = len(data)
    old = draw.draw(st.integers(1, new))
    proof = _hashes(data, consistency_path(old, new))
    assert proof == _subproof(old, data, known=True)
    old_root, new_root = _root(data[:old]), _root(data)
    assert is_consistent(old, new, old_root, new_root, proof)
    forged = _root([*data[: old - 1], data[old - 1] + b"!"])
    assert not is_consistent(old, new, forged, new_root, proof)
    assert not is_consistent(old, new, old_root, forged, proof)
    assert not is_consistent(old, new, old_root, new_root, [*proof, b"\0" * 32])
    if proof:
        assert not is_consistent(old, new, old_root, new_root, proof[:-1])


def test_spans_that_are_not_there_are_refused() -> None:
    for wrong in ((0, 0), (3, 3), (-1, 2)):
        with pytest.raises(ValueError, match="no leaf"):
            inclusion_path(*wrong)
        with pytest.raises(ValueError, match="no leaf"):
            root_from_inclusion(*wrong, b"", [])
    for wrong in ((0, 3), (4, 3)):
        with pytest.raises(ValueError, match="no proof"):
            consistency_path(*wrong)
    with pytest.raises(ValueError, match="whole subtrees"):
        Frontier(3, [b"\0" * 32])
