"""Canonical JSON: one form for one meaning."""

import json
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from libs.common.audit import RecordedEvent
from services.registry.canonical import canonical_json, event_members, event_of

_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=10,
)

_EVENT = RecordedEvent(
    id=7,
    at=datetime(2026, 11, 23, 4, 5, 6, 789, tzinfo=UTC),
    actor="alice",
    action="version.published",
    subject="hello@1.0.0",
    digest="sha256:00",
    previous_digest=None,
    reason="Ä “quoted” \n line",
    request_id=None,
    client="127.0.0.1",
    detail={"revision": 1, "b": [1.5, None], "a": True},
)


# Numbers and their forms as appendix B of RFC 8785 has them.
@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0"),
        (-0.0, "0"),
        (5e-324, "5e-324"),
        (-5e-324, "-5e-324"),
        (1.7976931348623157e308, "1.7976931348623157e+308"),
        (9007199254740992.0, "9007199254740992"),
        (295147905179352830000.0, "295147905179352830000"),
        (9.999999999999997e22, "9.999999999999997e+22"),
        (1e23, "1e+23"),
        (999999999999999900000.0, "999999999999999900000"),
        (1e21, "1e+21"),
        (9.999999999999997e-7, "9.999999999999997e-7"),
        (0.000001, "0.000001"),
        (333333333.3333332, "333333333.3333332"),
        (-0.0000033333333333333333, "-0.0000033333333333333333"),
        (1424953923781206.2, "1424953923781206.2"),
        (1.0, "1"),
        (2**60 + 1, "1152921504606846977"),
    ],
)
def test_numbers_are_written_as_the_standard_says(value: float, text: str) -> None:
    assert canonical_json(value) == text


def test_members_are_sorted_by_utf16_and_text_has_the_shortest_escapes() -> None:
    value = {"\U0001f600": 1, "\ufb33": 2, "\u20ac": '€$\x0f\nA\'B"\\\\"/', "1": [], "a": {}}
    assert canonical_json(value) == ('{"1":[],"a":{},"€":"€$\\u000f\\nA\'B\\"\\\\\\\\\\"/","\U0001f600":1,"\ufb33":2}')


@given(_JSON)
def test_what_was_read_back_has_the_same_form(value: Any) -> None:
    text = canonical_json(value)
    assert canonical_json(json.loads(text)) == text
    assert canonical_json(json.loads(json.dumps(value))) == text


def test_what_is_not_json_has_no_form() -> None:
    for wrong in (float("nan"), float("inf")):
        with pytest.raises(ValueError, match="not JSON"):
            canonical_json([wrong])


def test_an_event_is_the_same_whatever_the_zone_of_its_time() -> None:
    elsewhere = _EVENT.at.astimezone(timezone(timedelta(hours=5, minutes=30)))
    members = event_members(_EVENT)
    assert members["at"] == "2026-11-23T04:05:06.000789Z"
    moved = RecordedEvent(**{**{name: getattr(_EVENT, name) for name in _EVENT.__slots__}, "at": elsewhere})
    assert canonical_json(event_members(moved)) == canonical_json(members)
    assert event_of(json.loads(canonical_json(members))) == _EVENT


@pytest.mark.parametrize("change", [{"more": 1}, {"id": True}, {"at": "2026-11-23T04:05:06"}, {"at": 5}])
def test_what_is_not_quite_an_event_is_none(change: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="event"):
        event_of({**event_members(_EVENT), **change})
