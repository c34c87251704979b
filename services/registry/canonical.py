"""What is hashed of an event: canonical JSON, so that everybody who has the event can make the same bytes.

Members are those of `GET /audit`, always all of them, but for `at`, which has microseconds here. As in RFC 8785,
members are sorted by the UTF-16 code units of their names, there is no white space, text is UTF-8 with the shortest
escapes, and fractions are written as JavaScript writes them. Whole numbers keep all their digits, however many.
"""

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

from libs.common.audit import RecordedEvent
from services.registry.merkle import leaf_hash

_MEMBERS = {
    "id": "id",
    "at": "at",
    "actor": "actor",
    "action": "action",
    "subject": "subject",
    "digest": "digest",
    "previousDigest": "previous_digest",
    "reason": "reason",
    "requestId": "request_id",
    "client": "client",
    "detail": "detail",
}
"""Names on the wire, and where `RecordedEvent` has them."""

_PLAIN_BELOW = 21
_PLAIN_ABOVE = -7
"""Powers of ten between which ECMAScript writes numbers without an exponent."""


def event_members(event: RecordedEvent) -> dict[str, Any]:
    """An event as JSON has it; its time in UTC with microseconds."""
    members = {name: getattr(event, attribute) for name, attribute in _MEMBERS.items()}
    members["at"] = event.at.astimezone(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
    return members


def event_of(members: Mapping[str, Any]) -> RecordedEvent:
    """The event that has these members; ValueError where they are not those of an event, no fewer and no more."""
    if set(members) != set(_MEMBERS):
        raise ValueError(f"an event has the members {', '.join(_MEMBERS)}")
    fields = {attribute: members[name] for name, attribute in _MEMBERS.items()}
    if type(fields["id"]) is not int or not isinstance(fields["at"], str):
        raise ValueError("an event's id is a whole number, and its time a text")
    at = datetime.fromisoformat(fields["at"])
    if at.tzinfo is None:
        raise ValueError("an event's time has a zone")
    return RecordedEvent(**{**fields, "at": at})


def hash_of_event(event: RecordedEvent) -> bytes:
    """The leaf of an event."""
    return leaf_hash(canonical_json(event_members(event)).encode())


def canonical_json(value: Any) -> str:
    """A JSON value in the one form that has the same meaning everywhere. NaN and infinities are ValueErrors."""
    match value:
        case dict():
            names = sorted(value, key=lambda name: name.encode("utf-16-be"))
            return "{" + ",".join(f"{_text(name)}:{canonical_json(value[name])}" for name in names) + "}"
        case list():
            return "[" + ",".join(canonical_json(item) for item in value) + "]"
        case float():
            return _fraction(value)
        case str():
            return _text(value)
        case _:
            return json.dumps(value)  # null, true, false and whole numbers


def _text(value: str) -> str:
    return json.dumps(value, ensure_ascii=False)


def _fraction(value: float) -> str:
    """A number as ECMA-262 writes it (Number::toString): the shortest digits that read as the same number."""
    if value != value or value in (float("inf"), float("-inf")):
        raise ValueError(f"{value} is not JSON")
    if value == 0:
        return "0"
    sign, digits, exponent = Decimal(repr(value)).normalize().as_tuple()
    text = "".join(map(str, digits))
    point = len(text) + int(exponent)  # where the decimal point is, counted from the first digit
    if _PLAIN_ABOVE < point - 1 < _PLAIN_BELOW:
        if point <= 0:
            text = f"0.{'0' * -point}{text}"
        elif point >= len(text):
            text = text.ljust(point, "0")
        else:
            text = f"{text[:point]}.{text[point:]}"
    else:
        mantissa = f"{text[0]}.{text[1:]}" if len(text) > 1 else text
        text = f"{mantissa}e{point - 1:+d}"
    return f"-{text}" if sign else text
