"""Imports: asked for, looked at, followed."""

import asyncio
import time
from collections.abc import AsyncGenerator
from pathlib import Path

from libs.common import audit
from libs.common.completion import in_thread, to_the_end
from libs.common.database import Connection, Pool
from libs.common.errors import NotFound
from libs.common.idempotency import Conclude, nothing
from libs.common.identifiers import new_id
from libs.common.journal import Journal
from libs.common.models import Build, Import, ImportRequest, ImportState, Page
from libs.common.paging import Wanted, page_of
from services.builder import store
from services.builder.ledger import build_of, import_of, import_with
from services.builder.orders import Order
from services.builder.sources import find_example
from services.builder.worker import Worker

_EVENTS_AT_ONCE = 500


class Imports:
    """The imports of all builders, and those that this one is asked for."""

    def __init__(
        self,
        *,
        examples_dir: Path,
        pool: Pool,
        journal: Journal,
        worker: Worker,
        keep_alive_seconds: float,
        stopping: asyncio.Event,
    ) -> None:
        self._examples_dir = examples_dir
        self._pool = pool
        self._journal = journal
        self._worker = worker
        self._keep_alive_seconds = keep_alive_seconds
        self._stopping = stopping

    async def request(
        self, wanted: ImportRequest, origin: audit.Origin, *, conclude: Conclude[Import] = nothing
    ) -> Import:
        """Accept an import and begin with it. Raises InvalidRequest, NotFound, Unprocessable, Unavailable."""
        self._worker.require_open()
        slugs = await in_thread(self._choose, wanted)
        order = Order(new_id("imp"), wanted.example, origin.actor, waiting={slug: new_id("bld") for slug in slugs})
        # Undivided: what is written down is also begun, even if the client has left.
        return await to_the_end(self._accept(order, origin, conclude))

    async def get(self, import_id: str) -> Import:
        """An import; raises NotFound."""
        async with self._pool.acquire() as connection:
            return await self._shown(connection, import_id)

    async def page(self, wanted: Wanted, *, example: str | None) -> Page[Import]:
        """Imports, newest first, of one example or of all."""
        async with self._pool.acquire() as connection:
            rows = await store.list_imports(connection, example=example, before=wanted.key, limit=wanted.limit + 1)
            builds = await store.list_builds(connection, [row.id for row in rows[: wanted.limit]])
        return page_of(rows, wanted, lambda row: import_with(row, builds), lambda row: row.id)

    async def build(self, build_id: str) -> Build:
        """A build; raises NotFound."""
        async with self._pool.acquire() as connection:
            row = await store.get_build(connection, build_id)
        if row is None:
            raise NotFound(f"there is no build “{build_id}”.")
        return build_of(row)

    async def events(self, import_id: str, *, after: int) -> AsyncGenerator[store.ImportEvent | None, None] | None:
        """The events of an import from number `after` + 1 on, as they happen, until it ends; None in between is a sign
        of life. No iterator at all where the import has ended and nothing is left. Raises NotFound.
        """
        if await self._ended(import_id):
            async with self._pool.acquire() as connection:
                if not await store.list_events(connection, import_id, after=after, limit=1):
                    return None
        return self._follow(import_id, after)

    async def _accept(self, order: Order, origin: audit.Origin, conclude: Conclude[Import]) -> Import:
        event = audit.Event(
            "import.requested",
            f"import/{order.import_id}",
            detail={"example": order.example, "bundles": list(order.waiting)},
        )
        async with self._pool.acquire() as connection, connection.transaction():
            await store.insert_import(
                connection,
                order.import_id,
                example=order.example,
                requested_by=origin.actor,
                request_id=origin.request_id,
                holder=self._worker.holder,
            )
            for slug, build_id in order.waiting.items():
                await store.insert_build(connection, build_id, import_id=order.import_id, slug=slug)
            await audit.append(connection, origin, event)
            accepted = await self._shown(connection, order.import_id)
            await conclude(connection, accepted)
        self._worker.accept(order)
        return accepted

    async def _follow(self, import_id: str, after: int) -> AsyncGenerator[store.ImportEvent | None, None]:
        sent_at = time.monotonic()
        async with self._journal.changes(import_id) as changes:
            while True:
                # In this order: the last event is there when the import says that it has ended, and so is that of the
                # import that this builder has handed back.
                over = self._stopping.is_set() or await self._ended(import_id)
                async with self._pool.acquire() as connection:
                    events = await store.list_events(connection, import_id, after=after, limit=_EVENTS_AT_ONCE)
                for event in events:
                    yield event
                    after, sent_at = event.seq, time.monotonic()
                if events:
                    continue
                if over:
                    return
                if time.monotonic() - sent_at >= self._keep_alive_seconds:
                    yield None
                    sent_at = time.monotonic()
                await changes.wait()

    def _choose(self, wanted: ImportRequest) -> list[str]:
        return list(find_example(self._examples_dir, wanted.example).choose(wanted.bundles))

    async def _shown(self, connection: Connection, import_id: str) -> Import:
        return await import_of(connection, await _row(connection, import_id))

    async def _ended(self, import_id: str) -> bool:
        async with self._pool.acquire() as connection:
            row = await _row(connection, import_id)
        return row.state not in (ImportState.QUEUED, ImportState.RUNNING)


async def _row(connection: Connection, import_id: str) -> store.ImportRow:
    row = await store.get_import(connection, import_id)
    if row is None:
        raise NotFound(f"there is no import “{import_id}”.")
    return row
