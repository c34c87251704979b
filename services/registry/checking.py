"""Where a check of the audit trail finds what it checks: in the database and the bucket, or in files."""

from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from libs.common.completion import in_thread
from libs.common.database import Connection
from libs.common.objects import ObjectStore
from services.registry import witness
from services.registry.exports import read_export
from services.registry.merkle import Subtree
from services.registry.notes import InvalidNote, PublicKey, parse_note, verified
from services.registry.store import trail
from services.registry.tree import kept
from services.registry.verification import Known, Place, Tampered, Verifier

Item = TypeVar("Item")
_Whole = list[tuple[Subtree, bytes]]


@dataclass(slots=True)
class Verdict:
    """What was found of a trail that is as it was."""

    sealed: int = 0
    unsealed: int = 0
    checkpoints: int = 0
    newest: Known | None = None
    notes: list[str] = field(default_factory=list)


async def verify_database(connection: Connection, objects: ObjectStore | None, keys: Sequence[PublicKey]) -> Verdict:
    """Check the database, and with `objects` compare it with the bucket. Raises Tampered.

    Without keys signatures are not looked at, which proves nothing against whoever owns database and bucket.
    """
    # The bucket is asked first: what it has by now, the database has as well.
    sizes = [] if objects is None else await in_thread(lambda: list(witness.checkpoint_sizes(objects)))

    async def look_at_kept(whole: _Whole) -> None:
        for subtree, hashed in kept(whole):
            found = await trail.hashes_of(connection, subtree.level, subtree.position, subtree.position + 1)
            if found.get(subtree.position) != hashed:
                first = subtree.position << subtree.level
                raise Tampered(
                    f"the kept hash above positions {first} to {first + (1 << subtree.level) - 1} of the tree is not "
                    "that of the events there: it was changed, or an event and the hash kept of it were."
                )

    async with connection.transaction(isolation="repeatable_read", readonly=True):
        checkpoints = _merged(
            _of_bucket(objects, sizes, keys), _of_database(connection, keys, independent=objects is None)
        )
        places = _places_of_database(connection)
        verdict = await _verify(places, checkpoints, _witnesses(objects), look_at_kept)
        stray = await trail.first_stray(connection)
        if stray is not None:
            raise Tampered(
                f"event {stray} has no place in the tree and does not wait for one: it was inserted behind the "
                "registry's back, or its place was taken away."
            )
        verdict.unsealed = await trail.count_unsealed(connection)
    return verdict


async def verify_export(export: Path, notes: Sequence[Path], keys: Sequence[PublicKey]) -> Verdict:
    """Check an export by checkpoints in files, and nothing else. Raises Tampered, OSError, InvalidExport."""
    known = sorted((_known(note.read_text(), str(note), keys) for note in notes), key=_size)
    unsealed = 0

    async def places() -> AsyncIterator[Place]:
        nonlocal unsealed
        for line in read_export(export):
            if line.position is None:
                unsealed += 1
            else:
                yield Place(line.position, line.event.id, line.leaf_hash, line.event)

    verdict = await _verify(places(), _each(known), _each(()), None)
    verdict.unsealed = unsealed
    return verdict


async def _verify(
    places: AsyncIterator[Place],
    checkpoints: AsyncIterator[Known],
    witnesses: AsyncIterator[bytes],
    look_at: Callable[[_Whole], Awaitable[None]] | None,
) -> Verdict:
    """Check places in order, with checkpoints by size and witnessed hashes from position 0 on."""
    verifier, verdict = Verifier(), Verdict()
    upcoming = await anext(checkpoints, None)
    async for place in places:
        whole = verifier.add(place, await anext(witnesses, None))
        if look_at is not None and not verifier.doubts:
            await look_at(whole)
        while upcoming is not None and upcoming.checkpoint.tree_size == verifier.tree.size:
            verifier.confirm(upcoming)
            if upcoming.independent:
                verdict.checkpoints, verdict.newest = verdict.checkpoints + 1, upcoming
            upcoming = await anext(checkpoints, None)
    if upcoming is not None:
        rest: list[bytes] = []
        while verifier.tree.size + len(rest) < upcoming.checkpoint.tree_size:
            hashed = await anext(witnesses, None)
            if hashed is None:
                break
            rest.append(hashed)
        verifier.cut_off(upcoming, rest)
    verdict.sealed, verdict.notes = verifier.tree.size, verifier.notes
    return verdict


async def _places_of_database(connection: Connection) -> AsyncIterator[Place]:
    async for leaf in trail.all_leaves(connection):
        yield Place(leaf.position, leaf.event_id, leaf.leaf_hash, leaf.event)


async def _of_database(connection: Connection, keys: Sequence[PublicKey], *, independent: bool) -> AsyncIterator[Known]:
    async for signed in trail.all_checkpoints(connection):
        source = f"the checkpoint of {signed.tree_size} events in the database"
        known = _known(signed.note, source, keys)
        if (known.checkpoint.tree_size, known.checkpoint.root) != (signed.tree_size, signed.root):
            raise Tampered(f"{source} was changed: its note says something else than its row.")
        yield Known(known.checkpoint, source, independent)


async def _of_bucket(
    objects: ObjectStore | None, sizes: Sequence[int], keys: Sequence[PublicKey]
) -> AsyncIterator[Known]:
    if objects is None:
        return
    for size in sizes:
        source = f"{witness.checkpoint_key(size)} in the bucket"
        known = _known(await in_thread(witness.read_checkpoint, objects, size), source, keys)
        if known.checkpoint.tree_size != size:
            raise Tampered(f"{source} was changed: it is the checkpoint of {known.checkpoint.tree_size} events.")
        yield known


async def _witnesses(objects: ObjectStore | None) -> AsyncIterator[bytes]:
    if objects is None:
        return
    files = witness.read_leaves(objects)
    while (hashes := await in_thread(next, files, None)) is not None:
        for hashed in hashes:
            yield hashed


async def _merged(first: AsyncIterator[Known], second: AsyncIterator[Known]) -> AsyncIterator[Known]:
    """Both, by size."""
    left, right = await anext(first, None), await anext(second, None)
    while left is not None or right is not None:
        if right is None or (left is not None and _size(left) <= _size(right)):
            if left is not None:
                yield left
            left = await anext(first, None)
        else:
            yield right
            right = await anext(second, None)


async def _each(items: Iterable[Item]) -> AsyncIterator[Item]:
    for item in items:
        yield item


def _known(note: str, source: str, keys: Sequence[PublicKey]) -> Known:
    try:
        checkpoint = verified(note, keys) if keys else parse_note(note)
    except InvalidNote as error:
        raise Tampered(f"{source} is not what was signed: {error}") from None
    return Known(checkpoint, source)


def _size(known: Known) -> int:
    return known.checkpoint.tree_size
