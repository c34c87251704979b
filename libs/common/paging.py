"""Pages of lists: from the query string to a key, and from rows to a page with the cursor of the next."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from pydantic import Field

from libs.common.cursors import decode_cursor, encode_cursor
from libs.common.models import Page, Request, Resource

Item = TypeVar("Item", bound=Resource)
Row = TypeVar("Row")


@dataclass(frozen=True, slots=True)
class Wanted:
    """A page that is asked for: at most `limit` items, after the one with `key`, which is None for the first page.

    Where the keys of a list have several parts, `key` is a tuple.
    """

    key: Any
    limit: int


class PageQuery(Request):
    """Which part of a list."""

    limit: int = Field(50, ge=1, le=500, description="How many items at most.")
    cursor: str | None = Field(None, description="`next` of the page before; the first page has none.")

    def wanted(self, *kinds: type[str] | type[int]) -> Wanted:
        """The page that is asked for, of a list whose keys have parts of `kinds`, without any one text.

        InvalidRequest for another list's cursor.
        """
        if not self.cursor:
            return Wanted(None, self.limit)
        key = decode_cursor(self.cursor, *(kinds or (str,)))
        return Wanted(key if len(key) > 1 else key[0], self.limit)


def page_of(
    rows: Sequence[Row],
    wanted: Wanted,
    render: Callable[[Row], Item],
    key: Callable[[Row], str | int | tuple[str | int, ...]],
) -> Page[Item]:
    """The page that `rows` are. One row more than the limit has to be asked for: it says that there is a next page."""
    shown = rows[: wanted.limit]
    following = None
    if len(rows) > wanted.limit:
        last = key(shown[-1])
        following = encode_cursor(*last) if isinstance(last, tuple) else encode_cursor(last)
    return Page(items=[render(row) for row in shown], next=following)
