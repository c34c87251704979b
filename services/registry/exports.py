"""The audit trail as JSON lines: what `GET /audit/export` answers, and what `audit-verify --export` reads.

A line has the members of an event with its full time, and besides `position` and `leafHash` (base64): its place in the
tree, and the hash that stands there. Both are null where the event is not sealed yet.
"""

import base64
import json
from collections.abc import Iterator
from pathlib import Path

from services.registry.canonical import event_members, event_of
from services.registry.store.trail import ExportedEvent


class InvalidExport(ValueError):
    """A line of a file is none of an export; the message says which."""


def export_line(exported: ExportedEvent) -> str:
    """An event as a line, with its line break."""
    hashed = None if exported.leaf_hash is None else base64.b64encode(exported.leaf_hash).decode()
    members = {"position": exported.position, "leafHash": hashed, **event_members(exported.event)}
    return json.dumps(members, ensure_ascii=False, separators=(",", ":")) + "\n"


def read_export(path: Path) -> Iterator[ExportedEvent]:
    """The events in a file, one after the other. Raises OSError, InvalidExport."""
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            try:
                members = json.loads(line)
                position, hashed = members.pop("position"), members.pop("leafHash")
                if position is not None and type(position) is not int:
                    raise ValueError
                decoded = None if hashed is None else base64.b64decode(hashed, validate=True)
                yield ExportedEvent(position, decoded, event_of(members))
            except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
                raise InvalidExport(f"line {number} of {path} is no event of an export: {error}") from None
