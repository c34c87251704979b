"""Pages of lists: from the query string to a key, and from rows to a page with the cursor of the next."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from aiohttp import web

from libs.common.cursors import decode_cursor, encode_cursor
from libs.common.errors import InvalidRequest
from libs.common.models import Page, Resource

Item = TypeVar("Item", bound=Resource)
Row = TypeVar("Row")

_DEFAULT_LIMIT = 50
_MAX_LIMIT = 500


@dataclass(frozen=True, slots=True)
class Wanted:
    """A page that is asked for: at most `limit` items, after the one with `key`, which is None for the first page."""

    key: Any
    limit: int


def read_page(request: web.Request, kind: type[str] | type[int] = str) -> Wanted:
    """The `limit` (1 to 500) and the `cursor` of a request; InvalidRequest for a cursor that this list did not give."""
    cursor = request.query.get("cursor")
    return Wanted(decode_cursor(cursor, kind)[0] if cursor else None, _read_limit(request))


def page_of(
    rows: Sequence[Row], wanted: Wanted, render: Callable[[Row], Item], key: Callable[[Row], str | int]
) -> Page[Item]:
    """The page that `rows` are. One row more than the limit has to be asked for: it says that there is a next page."""
    shown = rows[: wanted.limit]
    following = encode_cursor(key(shown[-1])) if len(rows) > wanted.limit else None
    return Page(items=[render(row) for row in shown], next=following)


def _read_limit(request: web.Request) -> int:
    try:
        limit = int(request.query.get("limit", _DEFAULT_LIMIT))
    except ValueError:
        limit = 0
    if not 1 <= limit <= _MAX_LIMIT:
        raise InvalidRequest(f"limit must be a number from 1 to {_MAX_LIMIT}.")
    return limit
