"""Texts and JSON values as PostgreSQL can keep them: no NUL, no half surrogate pairs, no NaN."""

import json
from typing import Any

MAX_DEPTH = 190
"""How deep a value may be nested: what is shown with it on top is below the 200 at which clients' parsers refuse."""


class UnstorableValue(ValueError):
    """A value that is not JSON, or can't be stored; the message says why."""


def clean_text(text: str, limit: int | None = None) -> str:
    """`text` with what can't be stored replaced, cut at `limit` characters."""
    if limit is not None and len(text) > limit:
        text = text[:limit] + "…"
    return text.replace("\x00", "\ufffd").encode("utf-8", "replace").decode()


def clean_value(value: Any, *, depth: int = MAX_DEPTH) -> Any:
    """A JSON value with every text cleaned; what is nested too deep becomes its text."""
    match value:
        case str():
            return clean_text(value)
        case dict() | list() if depth == 0:
            return "…"
        case dict():
            return {clean_text(str(key)): clean_value(item, depth=depth - 1) for key, item in value.items()}
        case list():
            return [clean_value(item, depth=depth - 1) for item in value]
        case _:
            return value


def parse_json(text: str | bytes) -> Any:
    """The value that `text` is; UnstorableValue where it is not JSON (RFC 8259), NaN and Infinity included."""
    try:
        return json.loads(text, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise UnstorableValue(f"it is not JSON: {error}") from None


def require_storable(value: Any) -> int:
    """The length of `value` as JSON in bytes; UnstorableValue where PostgreSQL could not keep it."""
    try:
        text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
        encoded = text.encode()
    except UnicodeEncodeError:
        raise UnstorableValue("a text in it has half of a surrogate pair") from None
    except (TypeError, ValueError, RecursionError) as error:
        raise UnstorableValue(f"it is not JSON: {error}") from None
    # The escape may also be a backslash that is followed by these letters; then the slow look decides.
    if "\\u0000" in text and _has_nul(value):
        raise UnstorableValue("a text in it has the character U+0000")
    if text.count("[") + text.count("{") > MAX_DEPTH and _is_deep(value):
        raise UnstorableValue(f"it is nested more than {MAX_DEPTH} deep")
    return len(encoded)


def storable_fields(value: Any) -> dict[str, Any] | None:
    """Fields of a line for the log, as PostgreSQL can keep them; None where there are none that it can."""
    if not isinstance(value, dict) or not value:
        return None
    cleaned: dict[str, Any] = clean_value(value)
    try:
        require_storable(cleaned)
    except UnstorableValue:
        return None
    return cleaned


def _has_nul(value: Any) -> bool:
    match value:
        case str():
            return "\x00" in value
        case dict():
            return any(_has_nul(key) or _has_nul(item) for key, item in value.items())
        case list():
            return any(_has_nul(item) for item in value)
        case _:
            return False


def _is_deep(value: Any) -> bool:
    level, depth = [value], 0
    while level := [item for outer in level for item in _items(outer)]:
        depth += 1
        if depth > MAX_DEPTH:
            return True
    return False


def _items(value: Any) -> list[Any]:
    match value:
        case dict():
            return list(value.values())
        case list():
            return value
        case _:
            return []


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is no JSON value")
