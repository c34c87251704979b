"""Answers that are kept as they were written."""

import dataclasses
from datetime import UTC, datetime
from typing import Any

import pytest

from libs.common.conditional import KeptAnswers
from libs.common.models import Health
from services.registry.store.artifacts import Artifact
from services.registry.store.resolutions import Resolution

_NOW = datetime(2026, 11, 30, tzinfo=UTC)
_ARTIFACT = Artifact(
    *("sha256:a", "sha256:b", 1, 2, 3, "gzip", "key", {"name": "hello"}, ["any"], []),
    *(_NOW, None, None, None, None, None, None, True),
)
_RESOLUTION = Resolution("hello", "1.0.0", 1, "active", None, None, None, _ARTIFACT)


class _Maker:
    """Counts how often an answer is made."""

    def __init__(self) -> None:
        self.made = 0
        self.answers = KeptAnswers()

    def ask(self, name: str, text: str = "ok") -> bytes | bytearray | None:
        def make() -> Health:
            self.made += 1
            return Health(status=text)

        body = self.answers.answer(name, make).body
        assert isinstance(body, bytes)
        return body


def test_an_answer_is_made_once() -> None:
    maker = _Maker()
    assert {maker.ask("a") for _ in range(3)} == {b'{"status":"ok"}\n'}
    assert maker.made == 1


def test_no_more_are_kept_than_the_last_thousand() -> None:
    maker = _Maker()
    for number in range(5000):
        maker.ask(str(number))
        maker.ask("asked all the time")
    assert maker.made == 5001
    maker.ask("4500")
    assert maker.made == 5001
    maker.ask("0")
    assert maker.made == 5002


def test_what_is_large_is_not_kept() -> None:
    maker = _Maker()
    for _ in range(2):
        maker.ask("a", "x" * 20_000)
    assert maker.made == 2


@pytest.mark.parametrize("field", [field.name for field in dataclasses.fields(Resolution) if field.name != "artifact"])
def test_resolutions_that_differ_in_anything_are_not_taken_for_one(field: str) -> None:
    changed: dict[str, Any] = {field: "something else"}
    other = dataclasses.replace(_RESOLUTION, **changed)
    assert other.identity != _RESOLUTION.identity


@pytest.mark.parametrize(("field", "value"), [("digest", "sha256:c"), ("created_at", datetime(2027, 1, 1, tzinfo=UTC))])
def test_resolutions_of_different_artifacts_are_not_taken_for_one(field: str, value: Any) -> None:
    artifact = dataclasses.replace(_ARTIFACT, **{field: value})
    assert dataclasses.replace(_RESOLUTION, artifact=artifact).identity != _RESOLUTION.identity
