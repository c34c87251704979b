"""Cursors of lists: where the next page begins, in a form that callers hand back and don't look into."""

import base64
import json
from typing import Any

from libs.common.errors import InvalidRequest

_MAX_LENGTH = 4096
_MAX_NUMBER = 2**63 - 1


def encode_cursor(*key: str | int) -> str:
    """A cursor that stands after the item with this key."""
    text = json.dumps(key, ensure_ascii=False, separators=(",", ":"))
    return base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")


def decode_cursor(cursor: str, *kinds: type[str] | type[int]) -> tuple[Any, ...]:
    """The key that the cursor was made of, whose parts are of `kinds`; InvalidRequest for anything else."""
    try:
        if len(cursor) > _MAX_LENGTH:
            raise ValueError
        key = json.loads(base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True))
        if not isinstance(key, list) or [type(part) for part in key] != list(kinds):
            raise ValueError
        if not all(_storable(part) for part in key):
            raise ValueError
    except (ValueError, RecursionError):
        raise InvalidRequest(
            "the cursor is not one that this list gave. Begin again without a cursor.", kind="invalid-cursor"
        ) from None
    return tuple(key)


def _storable(part: str | int) -> bool:
    """Whether PostgreSQL can compare with it: no NUL, no half surrogate pair, no more than 64 bits."""
    if isinstance(part, int):
        return -_MAX_NUMBER <= part <= _MAX_NUMBER
    return "\0" not in part and part.encode("utf-8", "replace").decode() == part
