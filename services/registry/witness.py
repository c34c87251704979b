"""What the bucket keeps of the audit trail, so that a database can be checked by what it has no power over.

    audit/checkpoints/0000000000001842.txt                 the signed checkpoint of a tree of 1842 events
    audit/leaves/0000000000001800-0000000000001842.bin     the hashes of the events that came with it, 32 bytes each

Each is written once. The hashes need no signature: together they must have the root that the checkpoint signs.
"""

import contextlib
import re
from collections.abc import Iterator

from libs.common.object_errors import ObjectExists
from libs.common.objects import ObjectStore

_CHECKPOINTS = "audit/checkpoints/"
_LEAVES = "audit/leaves/"
_DIGITS = 16
_HASH_BYTES = 32
_CHECKPOINT = re.compile(rf"{_CHECKPOINTS}([0-9]{{{_DIGITS}}})\.txt")
_LEAF_FILE = re.compile(rf"{_LEAVES}([0-9]{{{_DIGITS}}})-([0-9]{{{_DIGITS}}})\.bin")


def checkpoint_key(size: int) -> str:
    """Where the checkpoint of a tree of this size is."""
    return f"{_CHECKPOINTS}{size:0{_DIGITS}}.txt"


def checkpoint_sizes(objects: ObjectStore, *, least: int = 0) -> Iterator[int]:
    """The sizes, from `least` on, of which there are checkpoints, in order. Blocks."""
    after = checkpoint_key(least - 1) if least > 0 else ""
    for page in objects.pages(_CHECKPOINTS, after=after):
        for item in page:
            if found := _CHECKPOINT.fullmatch(item.key):
                yield int(found[1])


def read_checkpoint(objects: ObjectStore, size: int) -> str:
    """The note of the checkpoint of this size; raises ObjectMissing. Blocks."""
    return _read(objects, checkpoint_key(size)).decode("utf-8", "replace")


def write_checkpoint(objects: ObjectStore, size: int, note: str) -> None:
    """Write a checkpoint; raises ObjectExists where there is one of this size. Blocks."""
    objects.put_once(checkpoint_key(size), note.encode(), content_type="text/plain; charset=utf-8")


def write_leaves(objects: ObjectStore, start: int, hashes: list[bytes]) -> None:
    """Write the hashes of the leaves from `start` on; what is there already stays. Blocks."""
    key = f"{_LEAVES}{start:0{_DIGITS}}-{start + len(hashes):0{_DIGITS}}.bin"
    # One that is there is of a registry that was stopped before it signed, or of another that signs just now.
    with contextlib.suppress(ObjectExists):
        objects.put_once(key, b"".join(hashes), content_type="application/octet-stream")


def read_leaves(objects: ObjectStore) -> Iterator[list[bytes]]:
    """The hashes of all leaves from position 0 on, some at a time, as far as there is no gap. Blocks."""
    position = 0
    for key in objects.list(_LEAVES):
        found = _LEAF_FILE.fullmatch(key)
        if found is None or not int(found[1]) <= position < int(found[2]):
            continue  # what it has was in one before
        data = _read(objects, key)
        hashes = [data[at : at + _HASH_BYTES] for at in range(0, len(data), _HASH_BYTES)]
        fresh = hashes[position - int(found[1]) :]
        position += len(fresh)
        yield fresh


def _read(objects: ObjectStore, key: str) -> bytes:
    with objects.read(key) as body:
        return b"".join(body)
