"""Imports that go from one builder to another."""

import asyncio
import contextlib
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import asyncpg
import pytest
from aiohttp import web

from libs.common.client import BuilderClient
from libs.common.database import Notifications, Pool, open_pool
from libs.common.identifiers import new_id
from libs.common.journal import Journal
from libs.common.models import Build, BuildState, Import, ImportState
from services.builder.ledger import IMPORTS_LEFT, HolderLost, Ledger
from services.builder.orders import Order
from services.builder.store import JOURNAL_GUARD
from tests.builder.conftest import Shop, finished, require_success
from tests.builder.examples import WrittenExample, waiting_for
from tests.builder.running import RunningBuilder
from tests.builder.waiting import eventually
from tests.ports import free_port

_BY_NEWS_ALONE = {"recovery_seconds": 3600}


async def _left(shop: Shop, *slugs: str, holder: str | None = None) -> str:
    """An import that nobody works on: handed back, or by a `holder` that was silent for long."""
    import_id = new_id("imp")
    await shop.backend.fetch(
        "WITH import AS (INSERT INTO builder.imports (id, example, requested_by, holder, heartbeat_at) "
        "VALUES ($1, $2, 'alice', $3, now() - interval '1 hour')) "
        "INSERT INTO builder.builds (id, import_id, slug) SELECT build, $1, slug "
        "FROM unnest($4::text[], $5::text[]) AS build (build, slug)",
        import_id,
        shop.example.name,
        holder,
        [new_id("bld") for _ in slugs],
        slugs,
    )
    return import_id


async def _finished(builder: RunningBuilder, import_id: str) -> Import:
    return await finished(builder, await builder.client.import_(import_id))


async def _said(shop: Shop, build: Build, line: str) -> None:
    """Return when a line is in the journal of a build."""

    async def there() -> bool:
        return bool(
            await shop.backend.fetch("SELECT FROM builder.journal WHERE stream = $1 AND message = $2", build.id, line)
        )

    await eventually(there)


async def _holder(shop: Shop, import_id: str) -> str | None:
    (row,) = await shop.backend.fetch("SELECT holder FROM builder.imports WHERE id = $1", import_id)
    holder: str | None = row["holder"]
    return holder


async def _events(shop: Shop, import_id: str) -> list[asyncpg.Record]:
    return await shop.backend.fetch(
        "SELECT seq, kind, data, at FROM builder.import_events WHERE import_id = $1 ORDER BY seq", import_id
    )


async def test_import_of_a_builder_that_is_stopped_is_finished_by_another_at_once(shop: Shop, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    shop.example.node("slow", waiting_for(gate))
    shop.example.python("notes")
    shop.example.job("slow", "slow@latest")
    shop.example.job("notes", "notes@latest")
    async with shop.builder(**_BY_NEWS_ALONE) as other:
        async with shop.builder() as first:
            started = await first.client.start_import(shop.example.name)
            notes, slow = started.builds

            async def follow() -> list[tuple[int, str, dict[str, object]]]:
                return [event async for event in other.client.import_events(started.id)]

            async def read() -> str:
                lines = other.client.lines(f"/builds/{slow.id}/log", follow="true")
                return "".join([f"{line}\n" async for line in lines])

            following, reading = asyncio.create_task(follow()), asyncio.create_task(read())
            await _said(shop, slow, "first line")

            async def built() -> bool:
                return (await first.client.get(f"/builds/{notes.id}", Build)).state is BuildState.SUCCEEDED

            await eventually(built)
        gate.touch()
        done = require_success(await finished(other, started))
        events = await following
        log = await shop.log(slow.id)
        assert await reading == log  # through another builder, and not interrupted

    assert [number for number, _, _ in events] == list(range(1, len(events) + 1))
    kinds = [kind for _, kind, _ in events]
    assert [kind for kind in kinds if kind.startswith("import.")] == [
        "import.started",
        "import.handed_back",
        "import.started",
        "import.finished",
    ]
    back = kinds.index("import.handed_back")
    shown = Import.model_validate(events[back][2])
    assert (shown.state, shown.started_at) == (ImportState.QUEUED, done.started_at)
    assert [(build.slug, build.state, build.stage) for build in shown.builds] == [
        ("notes", BuildState.SUCCEEDED, "done"),
        ("slow", BuildState.QUEUED, None),
    ]
    later = [Build.model_validate(data) for _, kind, data in events[back:] if kind.startswith("build.")]
    assert [(build.slug, build.stage) for build in later] == [
        ("slow", stage) for stage in ("copy", "install", "build", "prune", "publish", "done")
    ]
    assert events[-2][2] == {"jobs": ["notes", "slow"], "workflows": [], "leftOut": [], "problems": []}

    before, again, after = log.partition("was stopped; the build begins again.\n")
    assert again
    assert before.count("first line") == after.count("first line") == 1
    assert "second line" not in before
    assert "second line" in after
    times = [line.split(" ", 1)[0] for line in log.splitlines()]
    assert times == sorted(times)
    assert "begins again" not in await shop.log(notes.id)
    assert await shop.backend.fetch("SELECT * FROM builder.journal") == []
    (row,) = await shop.backend.fetch("SELECT times_lost FROM builder.imports")
    assert row["times_lost"] == 0


async def test_import_that_is_handed_back_again_and_again_waits_for_the_builder_to_start(
    shop: Shop, tmp_path: Path
) -> None:
    gate = tmp_path / "gate"
    shop.example.node("slow", waiting_for(gate))
    builder = shop.process()
    await builder.start()
    async with BuilderClient(builder.url, shop.token) as client:
        started = await client.start_import(shop.example.name)
        (build,) = started.builds
        for times in range(1, 5):  # more often than it could be lost

            async def said(times: int = times) -> bool:
                lines = await shop.backend.fetch("SELECT FROM builder.journal WHERE message = 'first line'")
                return len(lines) == times

            await eventually(said)
            assert await builder.end(signal.SIGTERM) == 0
            assert await _holder(shop, started.id) is None
            assert shop.left_behind() == []
            await builder.start()
        gate.touch()
        async with asyncio.timeout(60):
            kinds = [kind async for _, kind, _ in client.import_events(started.id)]
        require_success(await client.import_(started.id))
    assert [kind for kind in kinds if kind.startswith("import.")] == [
        *["import.started", "import.handed_back"] * 4,
        "import.started",
        "import.finished",
    ]
    assert (await shop.log(build.id)).count("was stopped; the build begins again.") == 4
    assert await builder.end(signal.SIGTERM) == 0


async def test_import_of_a_builder_that_is_killed_is_finished_by_another(shop: Shop, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    shop.example.node("slow", waiting_for(gate))
    killed = shop.process(heartbeat_seconds=0.3)
    await killed.start()
    async with shop.builder(lost_seconds=3, recovery_seconds=0.3) as other:
        async with BuilderClient(killed.url, shop.token) as client:
            started = await client.start_import(shop.example.name)
        await _said(shop, started.builds[0], "first line")
        await killed.end(signal.SIGKILL)
        gate.touch()
        require_success(await finished(other, started))
        await eventually(lambda: shop.left_behind() == [])
    log = await shop.log(started.builds[0].id)
    before, again, after = log.partition("was lost; the build begins again.\n")
    assert again
    assert before.count("first line") == after.count("first line") == 1
    (row,) = await shop.backend.fetch("SELECT times_lost FROM builder.imports")
    assert row["times_lost"] == 1


async def test_builders_that_look_at_the_same_time_never_work_on_the_same_import(shop: Shop) -> None:
    shop.example.python("notes")
    shop.example.python("more-notes")
    async with (
        shop.builder(**_BY_NEWS_ALONE) as builder,
        shop.builder(**_BY_NEWS_ALONE),
        shop.builder(**_BY_NEWS_ALONE),
    ):
        left = [await _left(shop, "notes", "more-notes", holder="gone" if number % 2 else None) for number in range(12)]
        await shop.backend.fetch("SELECT pg_notify('builder_journal', $1)", IMPORTS_LEFT)
        for import_id in left:
            require_success(await _finished(builder, import_id))
    for number, import_id in enumerate(left):
        kinds = [event["kind"] for event in await _events(shop, import_id)]
        assert kinds.count("import.lost") == number % 2
        assert kinds.count("import.started") == kinds.count("import.finished") == 1
        assert kinds.count("build.stage") == 4


async def test_full_builder_leaves_imports_to_others_until_it_has_room(shop: Shop, tmp_path: Path) -> None:
    first_gate, second_gate = tmp_path / "first", tmp_path / "second"
    shop.example.node("first", waiting_for(first_gate))
    shop.example.node("second", waiting_for(second_gate))
    async with shop.builder(concurrency=1, **_BY_NEWS_ALONE) as builder:
        first = await builder.client.start_import(shop.example.name, ["first"])
        await _said(shop, first.builds[0], "first line")
        async with shop.builder(concurrency=1, **_BY_NEWS_ALONE) as other:
            second = await other.client.start_import(shop.example.name, ["second"])
            await _said(shop, second.builds[0], "first line")
        assert await _holder(shop, second.id) is None
        first_gate.touch()
        second_gate.touch()
        require_success(await finished(builder, first))
        require_success(await finished(builder, second))
    (ended,) = [event["at"] for event in await _events(shop, first.id) if event["kind"] == "build.finished"]
    begun = [event["at"] for event in await _events(shop, second.id) if event["kind"] == "import.started"]
    assert len(begun) == 2
    assert begun[0] < ended < begun[1]


async def test_builder_without_the_example_fails_the_import_in_words(shop: Shop, tmp_path: Path) -> None:
    import_id = await _left(shop, "notes")
    await shop.backend.fetch(
        "INSERT INTO builder.builds (id, import_id, slug, state, finished_at) "
        "VALUES ($1, $2, 'done', 'succeeded', now())",
        new_id("bld"),
        import_id,
    )
    async with shop.builder(examples_dir=tmp_path / "elsewhere") as builder:
        done = await _finished(builder, import_id)
    assert done.error
    assert (done.state, done.error.type) == (ImportState.PARTIALLY_FAILED, "unknown-example")
    assert done.error.message == "there is no example “example”. Known are: none."
    assert [(build.slug, build.state) for build in done.builds] == [
        ("done", BuildState.SUCCEEDED),
        ("notes", BuildState.FAILED),
    ]
    assert done.builds[1].error == done.error
    assert done.error.message in await shop.log(done.builds[1].id)


async def test_builder_with_other_bundles_fails_those_that_it_lacks_in_words(shop: Shop, tmp_path: Path) -> None:
    import_id = await _left(shop, "notes", "gone")
    elsewhere = WrittenExample(tmp_path / "elsewhere")
    elsewhere.python("notes")
    async with shop.builder(examples_dir=elsewhere.directory) as builder:
        done = await _finished(builder, import_id)
    gone, notes = done.builds
    assert (done.state, notes.state) == (ImportState.PARTIALLY_FAILED, BuildState.SUCCEEDED)
    assert gone.error
    assert gone.error.type == "unknown-bundle"
    assert gone.error.message == "example has no bundles gone. It has notes."
    assert gone.error.message in await shop.log(gone.id)


@contextlib.asynccontextmanager
async def _unready(asked: list[str]) -> AsyncIterator[str]:
    """The URL of a registry that is starting: it notes what it is asked, and answers 503."""

    async def answer(request: web.BaseRequest) -> web.Response:
        asked.append(request.path)
        return web.Response(status=503)

    runner = web.ServerRunner(web.Server(answer))
    await runner.setup()
    port = free_port()
    try:
        await web.TCPSite(runner, "127.0.0.1", port).start()
        yield f"http://127.0.0.1:{port}"
    finally:
        await runner.cleanup()


async def test_nothing_is_taken_over_while_the_registry_is_not_there(shop: Shop) -> None:
    shop.example.python("notes")
    import_id = await _left(shop, "notes")
    asked: list[str] = []
    async with _unready(asked) as url, shop.builder(registry_url=url, recovery_seconds=0.1):
        await eventually(lambda: len(asked) > 3)
        assert set(asked) == {"/readyz"}
        assert await _holder(shop, import_id) is None
    async with shop.builder() as builder:
        require_success(await _finished(builder, import_id))


@contextlib.asynccontextmanager
async def _ledgers(shop: Shop, *holders: str) -> AsyncIterator[tuple[Pool, Journal, list[Ledger]]]:
    url = shop.backend.database_url
    async with open_pool(url, size=len(holders) + 2, application_name="test") as pool:
        journal = Journal(pool, "builder", Notifications(url, "builder_journal"), guard=JOURNAL_GUARD)
        yield pool, journal, [Ledger(pool, journal, holder) for holder in holders]


async def test_one_of_those_who_take_at_the_same_moment_gets_it(shop: Shop) -> None:
    async with _ledgers(shop, *[f"builder-{number}" for number in range(8)]) as (_, _, ledgers):
        for holder in [None, "gone"] * 15:
            import_id = await _left(shop, "notes", holder=holder)
            orders = await asyncio.gather(*[ledger.take_over(30, but=[]) for ledger in ledgers])
            taken = [(ledger.holder, order) for ledger, order in zip(ledgers, orders, strict=True) if order]
            assert len(taken) == 1
            assert isinstance(taken[0][1], Order)
            assert taken[0][1].import_id == import_id
            assert taken[0][0] == await _holder(shop, import_id)


async def test_builder_passes_over_what_it_is_working_on_itself(shop: Shop) -> None:
    mine, other = await _left(shop, "notes", holder="me"), await _left(shop, "notes", holder="you")
    async with _ledgers(shop, "me") as (_, _, (ledger,)):
        order = await ledger.take_over(30, but=[mine])
        assert order
        assert order.import_id == other
        assert not await ledger.is_import_left(30, but=[mine])


@pytest.mark.parametrize("handed_back", [True, False])
async def test_builder_that_has_an_import_no_more_can_neither_log_nor_write(shop: Shop, *, handed_back: bool) -> None:
    import_id = await _left(shop, "notes")
    async with _ledgers(shop, "first", "second") as (pool, journal, (first, second)):
        order = await first.take_over(30, but=[])
        assert order
        (build_id,) = order.waiting.values()
        async with journal.writing(build_id, holder="first") as old:
            old.write("build", "before")
            await old.flush()
            if handed_back:
                await first.hand_back(import_id)
            else:
                await pool.execute("UPDATE builder.imports SET heartbeat_at = now() - interval '1 hour'")
            assert await second.take_over(30, but=[])
            async with journal.writing(build_id, holder="second") as new:
                assert new.continues
                old.write("build", "too late")
                await old.flush()
                new.write("build", "after")
        assert [(entry.seq, entry.message) for entry in await journal.read(build_id)] == [(1, "before"), (2, "after")]
        for write in (first.start_import(import_id), first.hand_back(import_id)):
            with pytest.raises(HolderLost):
                await write


async def test_lines_that_are_being_stored_are_there_before_another_can_take_the_import(shop: Shop) -> None:
    import_id = await _left(shop, "notes")
    async with _ledgers(shop, "first", "second") as (pool, _, (first, second)):
        order = await first.take_over(30, but=[])
        assert order
        (build_id,) = order.waiting.values()
        async with pool.acquire() as connection, connection.transaction():
            # As the statement of a writer that is under way.
            assert await connection.fetchrow(JOURNAL_GUARD, build_id, "first") is not None
            handing_back = asyncio.create_task(first.hand_back(import_id))

            async def waits() -> bool:
                return bool(
                    await shop.backend.fetch(
                        "SELECT FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
                    )
                )

            await eventually(waits)
            assert not handing_back.done()
        await handing_back
        assert await second.take_over(30, but=[])
