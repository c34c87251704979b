"""Checking an audit trail: that its events are those that were sealed, and its tree is the one that was signed.

Events come in one at a time, in the order of the tree, and nothing of them is kept but the right edge of the tree, so
memory does not grow with the trail. Every checkpoint that is known is compared with the tree at its size. Where the
bucket's hashes of the leaves are at hand, the first event that differs is known even if whoever changed it rewrote all
that stands above it.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import NoReturn

from libs.common.audit import RecordedEvent
from services.registry.canonical import hash_of_event
from services.registry.merkle import Frontier, Subtree
from services.registry.notes import Checkpoint

_LATE = timedelta(hours=1)
"""How much older than events before it an event may be, for transactions that take their time."""


class Tampered(Exception):
    """The trail is not what it was; the message names the first event that was changed, removed or inserted."""


@dataclass(frozen=True, slots=True)
class Known:
    """A checkpoint that was signed, and where it was found: `audit/checkpoints/….txt in the bucket`.

    One that whoever changed the trail may have changed with it is not `independent`: it says nothing by agreeing.
    """

    checkpoint: Checkpoint
    source: str
    independent: bool = True


@dataclass(frozen=True, slots=True)
class Place:
    """What stands at a place of the tree: the event, None where it is gone, and the hash kept of it, if any."""

    position: int
    event_id: int
    kept_hash: bytes | None
    event: RecordedEvent | None


@dataclass(slots=True)
class _Doubt:
    """The first place whose hash is not the witnessed one, and what comes after it on both sides."""

    place: Place
    ours: list[bytes]
    witnessed: list[bytes]
    following: Place | None = None


@dataclass(slots=True)
class Verifier:
    """Takes the places of a tree in order. Every method raises Tampered as soon as something is not as it was."""

    tree: Frontier = field(default_factory=Frontier)
    witnessed: Frontier = field(default_factory=Frontier)
    notes: list[str] = field(default_factory=list)
    _confirmed: int = 0
    _last_id: int | None = None
    _latest: datetime | None = None
    _doubt: _Doubt | None = None

    @property
    def doubts(self) -> bool:
        """Whether a place differs from what the bucket has; the next checkpoint tells which of the two was signed."""
        return self._doubt is not None

    def add(self, place: Place, witness: bytes | None = None) -> list[tuple[Subtree, bytes]]:
        """The next place, with the bucket's hash of it if there is one; the subtrees that are whole by it."""
        self._require_next(place)
        event = place.event
        if event is None:
            raise Tampered(f"event {place.event_id}, at position {place.position} of the tree, was removed.")
        hashed = hash_of_event(event)
        if place.kept_hash is not None and hashed != place.kept_hash:
            raise Tampered(self._changed(place, event, hashed, witness))
        self._compare(place, hashed, witness)
        self._look_at_time(event)
        self._last_id = place.event_id
        return self.tree.append(hashed)

    def confirm(self, known: Known) -> None:
        """Compare the tree, at just this size, with a checkpoint."""
        if self.tree.root == known.checkpoint.root:
            if not known.independent:
                return
            self._confirmed = self.tree.size
            if self._doubt is not None:
                position = self._doubt.place.position
                self.notes.append(
                    f"the bucket's hash at position {position} is not the one that was signed; it was damaged."
                )
                self._doubt = None
            return
        if self._doubt is not None and self._is_witnessed(known):
            raise Tampered(_named(self._doubt))
        self._contradicted(known)

    def cut_off(self, missing: Known, rest: Iterable[bytes] = ()) -> NoReturn:
        """The tree ends here, before the size of a checkpoint. `rest` are the bucket's hashes up to that size."""
        if self._doubt is not None:
            for witness in rest:
                self._witness(witness)
            if self._is_witnessed(missing):
                raise Tampered(_named(self._doubt))
        gone = missing.checkpoint.tree_size - self.tree.size
        last = "there are none" if self._last_id is None else f"the last is event {self._last_id}"
        raise Tampered(
            f"{missing.source} signs {missing.checkpoint.tree_size} events, but the tree has {self.tree.size}, {last}: "
            f"{_events(gone)} after it {'was' if gone == 1 else 'were'} removed, or the database is an older copy."
        )

    def _require_next(self, place: Place) -> None:
        expected = self.tree.size
        if place.position > expected:
            where = "at the beginning" if self._last_id is None else f"after event {self._last_id}"
            raise Tampered(f"the event at position {expected} of the tree, {where}, was removed.")
        if place.position < expected:
            raise Tampered(
                f"event {place.event_id} was inserted: it stands at position {place.position}, where another event is."
            )

    def _changed(self, place: Place, event: RecordedEvent, hashed: bytes, witness: bytes | None) -> str:
        if hashed == witness:
            return (
                f"the kept hash of event {event.id} ({event.action} {event.subject}), at position {place.position}, "
                "was changed; the event is what it was."
            )
        return (
            f"event {event.id} ({event.action} {event.subject} by {event.actor} at {event.at.isoformat()}), at "
            f"position {place.position}, was changed after it was sealed: its hash is not the one that was kept of it."
        )

    def _compare(self, place: Place, hashed: bytes, witness: bytes | None) -> None:
        if self._doubt is not None and self._doubt.following is None:
            self._doubt.following = place
            self._doubt.ours.append(hashed)
        if witness is None:
            return
        if self._doubt is None and hashed != witness:
            self._doubt = _Doubt(place, [hashed], [])
        self._witness(witness)

    def _witness(self, witness: bytes) -> None:
        self.witnessed.append(witness)
        if self._doubt is not None and len(self._doubt.witnessed) < 2:
            self._doubt.witnessed.append(witness)

    def _is_witnessed(self, known: Known) -> bool:
        """Whether the bucket's hashes are those that the checkpoint signs."""
        size, root = known.checkpoint.tree_size, known.checkpoint.root
        return self.witnessed.size == size and self.witnessed.root == root

    def _contradicted(self, known: Known) -> NoReturn:
        first = self._confirmed
        where = f"position {first}" if first + 1 == self.tree.size else f"positions {first} to {self.tree.size - 1}"
        raise Tampered(
            f"{known.source} signs another tree of {self.tree.size} events: at {where} (the last of them is event "
            f"{self._last_id}) an event was changed, removed or inserted, and the hashes with it. The "
            f"{_events(first)} before are as they were."
        )

    def _look_at_time(self, event: RecordedEvent) -> None:
        if self._latest is not None and self._latest - event.at > _LATE and not self.notes:
            self.notes.append(
                f"event {event.id} says that it is of {event.at.isoformat()}, but was sealed after events of "
                f"{self._latest.isoformat()}: it was backdated, or a clock was wrong."
            )
        self._latest = event.at if self._latest is None else max(self._latest, event.at)


def _named(doubt: _Doubt) -> str:
    """What happened at the first place that is not the one that was signed."""
    position, event_id = doubt.place.position, doubt.place.event_id
    ours, witnessed = doubt.ours, doubt.witnessed
    removed = len(witnessed) > 1 and ours[0] == witnessed[1]
    inserted = len(ours) > 1 and ours[1] == witnessed[0]
    if removed and inserted and doubt.following is not None:
        what = f"events {event_id} and {doubt.following.event_id} changed places at position {position}"
    elif removed:
        what = f"the event at position {position}, just before event {event_id}, was removed"
    elif inserted:
        what = f"event {event_id}, at position {position}, was inserted"
    else:
        what = f"event {event_id}, at position {position}, was changed, or stands in the place of another one"
    return f"{what}. All hashes were rewritten with it; the bucket has those that were signed."


def _events(count: int) -> str:
    return "1 event" if count == 1 else f"{count:,} events"
