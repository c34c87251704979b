"""Reading the audit trail: filters and pages in the order of time, and the whole as JSON lines."""

import asyncio
import json
from typing import Any

import asyncpg
import pytest

from libs.common.database import open_pool
from services.registry.sealing import seal
from services.registry.store import trail
from tests.backend import Backend
from tests.registry.running import RunningRegistry, running_registry

# Two events a minute apart; the ids go the other way, as those of transactions that commit late.
_EVENTS = """
    INSERT INTO audit.events (at, actor, action, subject)
    SELECT '2026-01-01 00:00Z'::timestamptz - make_interval(mins => n), 'actor-' || n % 3, 'action-' || n % 2, subject
    FROM generate_series(1, 60) AS n, unnest(ARRAY['hello@1.0.' || n % 5, 'hello-two@1.0.0']) AS subject
"""


async def _all(registry: RunningRegistry, **query: str) -> list[dict[str, Any]]:
    """Every page, one after the other."""
    items: list[dict[str, Any]] = []
    cursor: dict[str, str] = {}
    while True:
        answer = await registry.request(
            "GET", "/audit", params={"limit": "7", "until": "2026-01-01T00:00Z", **query, **cursor}
        )
        assert answer.status == 200, answer.body
        items += answer.json["items"]
        if answer.json["next"] is None:
            return items
        cursor = {"cursor": answer.json["next"]}


async def test_pages_have_every_event_once_newest_first_whatever_the_filter(backend: Backend) -> None:
    await backend.fetch(_EVENTS)
    rows = [dict(row) for row in await backend.fetch("SELECT * FROM audit.events ORDER BY at DESC, id DESC")]
    async with running_registry(backend, audit_seal_seconds=3600) as registry:
        for query in (
            {},
            {"actor": "actor-1"},
            {"action": "action-0"},
            {"subject": "hello"},
            {"subject": "hello@1.0.3"},
            {"subject": "hello", "actor": "actor-2", "action": "action-1"},
            {"since": "2025-12-31T23:30:00Z"},
            {"until": "2025-12-31T23:30:00+00:00", "subject": "hello"},
        ):
            found = [item["id"] for item in await _all(registry, **query)]
            assert found == [row["id"] for row in rows if _matches(row, query)]
            assert found
        assert (await registry.request("GET", "/audit?cursor=WzldMQ")).status == 400


def _matches(row: dict[str, Any], query: dict[str, str]) -> bool:
    at: str = row["at"].isoformat()
    subject = query.get("subject", row["subject"])
    return bool(
        row["actor"] == query.get("actor", row["actor"])
        and row["action"] == query.get("action", row["action"])
        and (row["subject"] == subject or row["subject"].startswith(f"{subject}@"))
        and query.get("since", "").removesuffix("Z") <= at < query.get("until", "3")
    )


async def test_every_filter_has_an_index_that_gives_the_order(backend: Backend) -> None:
    """Also where the planner would rather read everybody's events until it has found enough of one actor's."""
    moment = (await backend.fetch("SELECT now() AS now"))[0]["now"]
    wanted = {
        "events_by_time": [trail.EventFilter(), trail.EventFilter(since=moment), trail.EventFilter(until=moment)],
        "events_by_actor": [trail.EventFilter(actor="a"), trail.EventFilter(actor="a", until=moment)],
        "events_by_action": [trail.EventFilter(action="a"), trail.EventFilter(action="a", since=moment)],
        "events_by_thing": [trail.EventFilter(subject="a"), trail.EventFilter(subject="a", until=moment)],
        "events_by_subject": [trail.EventFilter(subject="a@1")],
    }
    async with open_pool(backend.database_url, size=1, application_name="test") as pool, pool.acquire() as connection:
        await connection.execute("SET enable_seqscan = off; SET enable_sort = off; SET enable_bitmapscan = off")
        for index, filters in wanted.items():
            for asked in filters:
                for before in (None, (moment, 5)):
                    statement, values = trail.list_statement(asked, before=before, limit=51)
                    plan = await _plan(connection, statement, *values)
                    assert (plan["Node Type"], plan["Plans"][0].get("Index Name")) == ("Limit", index), (asked, plan)
                    assert "Filter" not in plan["Plans"][0], (asked, plan)


async def test_a_page_is_planned_for_those_whom_it_is_about_however_often_it_is_asked_for(backend: Backend) -> None:
    """A plan for anybody reads all events of an actor, who may have written most of them."""
    await backend.fetch(_EVENTS)
    asked = trail.EventFilter(actor="actor-1", subject="hello")
    async with open_pool(backend.database_url, size=1, application_name="test") as pool, pool.acquire() as connection:
        for _ in range(10):
            assert len(await trail.list_events(connection, asked, before=None, limit=51)) == 20
        plans = await connection.fetchval(
            "SELECT coalesce(sum(generic_plans), 0) FROM pg_prepared_statements WHERE statement LIKE $1",
            "%FROM audit.events%",
        )
    assert plans == 0


async def _plan(connection: Any, query: str, *values: Any) -> dict[str, Any]:
    (explained,) = await connection.fetchrow(f"EXPLAIN (FORMAT JSON) {query}", *values)
    plan: dict[str, Any] = explained[0]["Plan"]
    return plan


async def test_an_export_has_all_that_matches_in_the_order_of_the_tree(backend: Backend) -> None:
    await backend.fetch(_EVENTS)
    async with open_pool(backend.database_url, size=1, application_name="test") as pool:
        await seal(pool)
    async with running_registry(backend, audit_seal_seconds=3600) as registry:
        async with asyncio.timeout(20):
            while await backend.fetch("SELECT FROM audit.unsealed"):  # noqa: ASYNC110  # what it seals when it starts
                await asyncio.sleep(0.02)
        await backend.fetch(
            "INSERT INTO audit.events (actor, action, subject) VALUES ('actor-1', 'late', 'hello@2.0.0')"
        )
        whole = await _exported(registry)
        assert [line["position"] for line in whole if line["position"] is not None][:120] == list(range(120))
        assert (whole[-1]["action"], whole[-1]["position"], whole[-1]["leafHash"]) == ("late", None, None)
        some = await _exported(registry, actor="actor-1", subject="hello")
        assert some == [line for line in whole if line["actor"] == "actor-1" and line["subject"].startswith("hello@")]
        assert len(some) == 21
        assert (await registry.request("GET", "/audit/export?limit=5")).status == 400


async def _exported(registry: RunningRegistry, **query: str) -> list[dict[str, Any]]:
    answer = await registry.request("GET", "/audit/export", params=query)
    assert answer.headers["Content-Type"].startswith("application/x-ndjson")
    return [json.loads(line) for line in answer.body.decode().splitlines()]


async def test_the_tree_refuses_change_as_the_trail_does(backend: Backend) -> None:
    await backend.fetch("INSERT INTO audit.leaves VALUES (0, 1, sha256(''))")
    await backend.fetch("INSERT INTO audit.subtrees VALUES (8, 0, sha256(''))")
    await backend.fetch("INSERT INTO audit.checkpoints VALUES (1, sha256(''), '')")
    for table in ("leaves", "subtrees", "checkpoints"):
        for statement in (f"DELETE FROM audit.{table}", f"TRUNCATE audit.{table}"):  # noqa: S608
            with pytest.raises(asyncpg.InsufficientPrivilegeError, match="append-only"):
                await backend.fetch(statement)
