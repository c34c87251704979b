"""Builders that are lost: killed, or silent for too long."""

import asyncio
import re
import signal
from pathlib import Path

import psutil

from libs.common.client import BuilderClient
from libs.common.models import BuildState, Import, ImportState
from tests.builder.conftest import Shop, finished, import_now, require_success
from tests.builder.test_builds import _forking
from tests.builder.waiting import eventually

_QUICK = {"heartbeat_seconds": 0.3, "lost_seconds": 3, "recovery_seconds": 0.3}


async def test_builder_killed_in_the_middle_of_a_build_leaves_nothing_and_begins_it_again_after_a_restart(
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

        (shop.example.path / "bundles/hung/build.js").write_text("console.log('not hanging')")
        await builder.start()
        async with asyncio.timeout(60):
            events = [(kind, data) async for _, kind, data in client.import_events(started.id)]
        done = require_success(await client.import_(started.id))
    assert [kind for kind, _ in events] == [
        "import.started",
        *["build.stage"] * 3,
        "import.lost",
        "import.started",
        *["build.stage"] * 5,
        "build.finished",
        "build.stage",
        "build.stage",
        "build.finished",
        "definitions.updated",
        "import.finished",
    ]
    lost = Import.model_validate(dict(events)["import.lost"])
    assert (lost.state, [build.state for build in lost.builds]) == (ImportState.QUEUED, [BuildState.QUEUED] * 2)
    text = await shop.log(done.builds[0].id)
    assert re.search(r"\] hanging\n.* WARNING .* was lost; the build begins again\.\n(.*\n)+.*\] not hanging\n", text)
    assert "begins again" not in await shop.log(done.builds[1].id)
    assert await shop.backend.fetch("SELECT * FROM builder.journal") == []
    trail = await shop.backend.fetch(
        "SELECT actor, action FROM audit.events WHERE subject = $1 ORDER BY id", f"import/{started.id}"
    )
    assert [tuple(event) for event in trail] == [("alice", "import.requested"), ("alice", "import.finished")]
    assert await builder.end(signal.SIGTERM) == 0


async def test_import_that_killed_three_builders_fails_and_says_so(shop: Shop, tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    pids.mkdir()
    shop.example.node("hung", _forking(pids))
    shop.example.python("notes")
    builder = shop.process(concurrency=2, **{**_QUICK, "lost_seconds": 1})
    await builder.start()
    async with BuilderClient(builder.url, shop.token) as client:
        started = await client.start_import(shop.example.name)
        for times in (1, 2, 3):

            async def only_one_hangs(times: int = times) -> bool:
                ended = (await client.import_(started.id)).builds[1].state is BuildState.SUCCEEDED
                return ended and len(list(pids.iterdir())) == 3 * times

            await eventually(only_one_hangs)
            await builder.end(signal.SIGKILL)
            await builder.start()
        async with asyncio.timeout(30):
            kinds = [kind async for _, kind, _ in client.import_events(started.id)]
        done = await client.import_(started.id)
    assert [kind for kind in kinds if kind.startswith("import.")] == [
        *["import.started", "import.lost"] * 3,
        "import.finished",
    ]
    assert done.error
    assert (done.state, done.error.type) == (ImportState.PARTIALLY_FAILED, "builder-lost")
    assert done.error.message.startswith("3 builders were lost while they worked on it")
    hung, notes = done.builds
    assert (hung.state, hung.error) == (BuildState.FAILED, done.error)
    assert notes.state is BuildState.SUCCEEDED  # what had ended stays as it is
    await eventually(lambda: len(shop.backend.keys("logs/builds/")) == 2)
    text = await shop.log(hung.id)
    assert text.count("begins again") == 2
    assert done.error.message in text.splitlines()[-1]
    assert await shop.backend.fetch("SELECT * FROM builder.journal") == []
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
    kind, data = seen[-1]
    assert kind == "import.handed_back"
    last = Import.model_validate(data)
    assert (last.state, [build.state for build in last.builds]) == (ImportState.QUEUED, [BuildState.QUEUED])
    assert not any(psutil.pid_exists(int(path.name)) for path in pids.iterdir())
    assert shop.left_behind() == []


async def test_build_that_was_published_and_not_recorded_is_found_to_be_its_own(shop: Shop) -> None:
    shop.example.python("notes")
    async with shop.builder() as builder:
        (before,) = require_success(await import_now(builder, shop.example)).builds
    # As a builder leaves it that is killed between the two.
    await shop.backend.fetch(
        "UPDATE builder.builds SET state = 'running', stage = 'publish', revision = NULL, digest = NULL, "
        "platforms = '{}', unchanged = NULL, log_key = NULL, finished_at = NULL RETURNING id"
    )
    await shop.backend.fetch(
        "UPDATE builder.imports SET state = 'running', heartbeat_at = now() - interval '1 minute', "
        "finished_at = NULL RETURNING id"
    )
    async with shop.builder() as builder:

        async def ended() -> bool:
            return (await builder.client.import_(before.import_id)).state is ImportState.SUCCEEDED

        await eventually(ended)
        (after,) = (await builder.client.import_(before.import_id)).builds
    assert (after.revision, after.digest, after.unchanged) == (before.revision, before.digest, False)


async def test_builder_whose_import_was_taken_away_stops_and_publishes_nothing(shop: Shop, tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    pids.mkdir()
    shop.example.node("hung", _forking(pids))
    shop.example.node(
        "talks",
        "for (;;) { console.log('still here'); Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, 5); }",
    )

    async def lines() -> int:
        return len(await shop.backend.fetch("SELECT FROM builder.journal WHERE message = 'still here'"))

    async with shop.builder(heartbeat_seconds=0.5) as builder:
        started = await builder.client.start_import(shop.example.name)

        async def both_are_at_it() -> bool:
            return len(list(pids.iterdir())) == 3 and await lines() > 0

        await eventually(both_are_at_it)
        await shop.backend.fetch(
            "UPDATE builder.imports SET holder = 'somebody-else' WHERE id = $1 RETURNING id", started.id
        )
        said = await lines()
        await eventually(lambda: not any(psutil.pid_exists(int(path.name)) for path in pids.iterdir()))
        await eventually(lambda: shop.left_behind() == [])
        assert (await builder.client.import_(started.id)).state is ImportState.RUNNING
    assert await lines() == said
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
