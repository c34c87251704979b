"""Builders that are lost: killed, or silent for too long."""

import asyncio
import signal
from pathlib import Path

import psutil

from libs.common.client import BuilderClient
from libs.common.models import BuildState, Import, ImportState
from tests.builder.conftest import Shop, finished, import_now, require_success
from tests.builder.test_builds import _forking
from tests.builder.waiting import eventually

_LOST = "the builder that worked on it was lost; run the import again."
_QUICK = {"heartbeat_seconds": 0.3, "lost_seconds": 3, "recovery_seconds": 0.3}


async def test_builder_killed_in_the_middle_of_a_build_leaves_nothing_after_a_restart(
    shop: Shop, tmp_path: Path
) -> None:
    pids = tmp_path / "pids"
    pids.mkdir()
    shop.example.node("hung", _forking(pids))
    shop.example.python("notes")
    builder = shop.process(concurrency=1, **_QUICK)
    await builder.start()
    async with BuilderClient(builder.url, shop.token) as client:
        started = await client.start_import(shop.example.name)
        await eventually(lambda: len(list(pids.iterdir())) == 3)
        assert shop.left_behind() != []

        async def said() -> bool:
            return bool(await shop.backend.fetch("SELECT FROM builder.journal WHERE message LIKE '%hanging%'"))

        await eventually(said)  # lines are stored a moment after they were printed
        await builder.end(signal.SIGKILL)
        await eventually(lambda: not any(psutil.pid_exists(int(path.name)) for path in pids.iterdir()))
        assert len([name for name in shop.left_behind() if "/" not in name]) == 1

        await builder.start()
        await eventually(lambda: shop.left_behind() == [])
        async with asyncio.timeout(20):
            kinds = [kind async for _, kind, _ in client.import_events(started.id)]
        assert kinds[-3:] == ["build.finished", "build.finished", "import.finished"]
        done = await client.import_(started.id)
        assert (done.state, done.error.message if done.error else "") == (ImportState.FAILED, _LOST)
        assert [(build.slug, build.state) for build in done.builds] == [
            ("hung", BuildState.FAILED),
            ("notes", BuildState.FAILED),
        ]
        await eventually(lambda: len(shop.backend.keys("logs/builds/")) == 2)
        text = await shop.log(done.builds[0].id)
        assert "hanging" in text
        assert _LOST in text
        assert await shop.backend.fetch("SELECT * FROM builder.journal") == []
        events = await shop.backend.fetch(
            "SELECT actor, action FROM audit.events WHERE subject = $1 ORDER BY id", f"import/{started.id}"
        )
        assert [tuple(event) for event in events] == [("alice", "import.requested"), ("alice", "import.finished")]

        # And running it again repairs it.
        (shop.example.path / "bundles/hung/build.js").write_text("")
        again = await client.start_import(shop.example.name)
        async with asyncio.timeout(60):
            _ = [kind async for _, kind, _ in client.import_events(again.id)]
        require_success(await client.import_(again.id))
    assert await builder.end(signal.SIGTERM) == 0


async def test_terminated_builder_ends_in_order(shop: Shop, tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    pids.mkdir()
    shop.example.node("hung", _forking(pids))
    builder = shop.process()
    await builder.start()
    async with BuilderClient(builder.url, shop.token) as client:
        started = await client.start_import(shop.example.name)
        seen: list[tuple[str, object]] = []

        async def follow() -> None:
            async for _, kind, data in client.import_events(started.id):
                seen.append((kind, data))

        follower = asyncio.create_task(follow())
        await eventually(lambda: len(list(pids.iterdir())) == 3)
        assert await builder.end(signal.SIGTERM) == 0
        await follower
    assert [kind for kind, _ in seen[-2:]] == ["build.finished", "import.finished"]
    last = Import.model_validate(seen[-1][1])
    assert last.error
    assert "was stopped" in last.error.message
    assert not any(psutil.pid_exists(int(path.name)) for path in pids.iterdir())
    assert shop.left_behind() == []


async def test_import_is_taken_from_a_builder_that_is_silent_and_several_may_find_it(shop: Shop) -> None:
    shop.example.python("notes")
    quick = {"recovery_seconds": 0.2, "lost_seconds": 20}
    async with shop.builder(**quick), shop.builder(**quick), shop.builder() as builder:
        done = require_success(await import_now(builder, shop.example))
        await shop.backend.fetch(
            "UPDATE builder.imports SET state = 'running', heartbeat_at = now() - interval '1 minute', "
            "holder = 'gone' WHERE id = $1 RETURNING id",
            done.id,
        )

        async def failed() -> bool:
            return (await builder.client.import_(done.id)).state is ImportState.FAILED

        await eventually(failed)
        lost = await builder.client.import_(done.id)
    # What had ended stays as it is.
    assert [build.state for build in lost.builds] == [BuildState.SUCCEEDED]
    events = await shop.backend.fetch("SELECT kind FROM builder.import_events WHERE import_id = $1", done.id)
    assert [event["kind"] for event in events].count("import.finished") == 2


async def test_builder_whose_import_was_taken_away_stops_and_publishes_nothing(shop: Shop, tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    pids.mkdir()
    shop.example.node("hung", _forking(pids))
    async with shop.builder(heartbeat_seconds=0.2) as builder:
        started = await builder.client.start_import(shop.example.name)
        await eventually(lambda: len(list(pids.iterdir())) == 3)
        await shop.backend.fetch(
            "UPDATE builder.imports SET holder = 'somebody-else' WHERE id = $1 RETURNING id", started.id
        )
        await eventually(lambda: not any(psutil.pid_exists(int(path.name)) for path in pids.iterdir()))
        await eventually(lambda: shop.left_behind() == [])
        assert (await builder.client.import_(started.id)).state is ImportState.RUNNING
    assert await shop.backend.fetch("SELECT * FROM registry.versions") == []


async def test_long_build_of_a_live_builder_is_not_taken_for_lost(shop: Shop) -> None:
    shop.example.node("slow", "Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, 6000);")
    async with shop.builder(**_QUICK) as builder, shop.builder(**_QUICK):
        require_success(await import_now(builder, shop.example))


async def test_log_that_could_not_be_moved_is_moved_later(shop: Shop) -> None:
    shop.example.python("notes")
    async with shop.builder() as builder:
        done = require_success(await import_now(builder, shop.example))
        build_id = done.builds[0].id
        whole = await shop.log(build_id)
        # As if the bucket had been away: the lines are still in the journal.
        await shop.backend.fetch("UPDATE builder.builds SET log_key = NULL WHERE id = $1 RETURNING id", build_id)
        await shop.backend.fetch(
            "INSERT INTO builder.journal VALUES ($1, 1, now(), 'copy', 'info', 'kept', NULL) RETURNING seq", build_id
        )
        assert "kept" in "".join([line async for line in builder.client.lines(f"/builds/{build_id}/log")])
        store = shop.backend.objects()
        store.delete(f"logs/builds/{build_id}.log")
        store.close()
    assert whole
    async with shop.builder(**_QUICK) as builder:
        await eventually(lambda: shop.backend.keys("logs/builds/") != [])
        assert "kept" in await shop.log(build_id)
        assert (await finished(builder, done)).state is ImportState.SUCCEEDED
