"""Watching: events that can be resumed from any builder, and logs that are followed."""

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest

from libs.common.client import BuilderClient, ServiceError
from libs.common.models import Build, Import, ImportState
from tests.builder.conftest import Shop, finished, import_now, require_success
from tests.builder.examples import waiting_for
from tests.builder.running import RunningBuilder
from tests.builder.waiting import eventually


async def _raw_events(builder: RunningBuilder, import_id: str, after: str | None) -> tuple[int, str]:
    headers = {"Last-Event-ID": after} if after is not None else {}
    async with builder.client.request("GET", f"/imports/{import_id}/events", headers=headers) as answer:
        return answer.status, (await answer.read()).decode()


async def test_events_tell_every_stage_and_end_with_the_import(shop: Shop) -> None:
    shop.example.node("thing", "")
    shop.example.job("thing", "thing@latest")
    async with shop.builder() as builder:
        started = await builder.client.start_import(shop.example.name)
        events = [event async for event in builder.client.import_events(started.id)]
    assert [number for number, _, _ in events] == list(range(1, len(events) + 1))
    assert [kind for _, kind, _ in events] == [
        "import.started",
        *["build.stage"] * 5,
        "build.finished",
        "definitions.updated",
        "import.finished",
    ]
    builds = [Build.model_validate(data) for _, kind, data in events if kind.startswith("build.")]
    assert [build.stage for build in builds] == ["copy", "install", "build", "prune", "publish", "done"]
    assert [build.version for build in builds] == [None, *["1.0.0"] * 5]
    assert builds[-1].digest
    assert events[-2][2] == {"jobs": ["thing"], "workflows": [], "leftOut": [], "problems": []}
    assert Import.model_validate(events[-1][2]).state is ImportState.SUCCEEDED


async def test_events_are_resumed_after_the_last_one_seen(shop: Shop) -> None:
    shop.example.python("notes")
    async with shop.builder() as builder:
        done = require_success(await import_now(builder, shop.example))
        whole = [event async for event in builder.client.import_events(done.id)]
        for after in range(len(whole)):
            assert [event async for event in builder.client.import_events(done.id, after=after)] == whole[after:]
        assert await _raw_events(builder, done.id, str(len(whole))) == (204, "")
        status, text = await _raw_events(builder, done.id, str(len(whole) - 1))
        assert status == 200
        assert text.startswith(f"id: {len(whole)}\nevent: import.finished\ndata: {{")
        for wrong in ("x", "-1", "1e3", "99999999999999999999999", "²"):
            with pytest.raises((ServiceError, ValueError)) as refused:
                await _raw_events(builder, done.id, wrong)
            assert getattr(refused.value, "status", 400) == 400


async def test_events_are_followed_live_through_another_builder(shop: Shop, tmp_path: Path) -> None:
    shop.example.node("slow", waiting_for(tmp_path / "go"))
    async with shop.builder() as builder, shop.builder() as other:
        started = await builder.client.start_import(shop.example.name)
        seen: list[str] = []

        async def follow(events: AsyncIterator[tuple[int, str, object]]) -> None:
            async for _, kind, _ in events:
                seen.append(kind)

        follower = asyncio.create_task(follow(other.client.import_events(started.id)))
        await eventually(lambda: seen.count("build.stage") == 3)
        assert not follower.done()
        (tmp_path / "go").touch()
        async with asyncio.timeout(20):
            await follower
    assert seen[-1] == "import.finished"


async def test_silent_stream_of_events_gets_comments(shop: Shop, tmp_path: Path) -> None:
    shop.example.node("slow", waiting_for(tmp_path / "go"))
    async with shop.builder(keep_alive_seconds=0.2) as builder:
        started = await builder.client.start_import(shop.example.name)
        async with builder.client.request("GET", f"/imports/{started.id}/events") as answer:
            assert answer.headers["Content-Type"] == "text/event-stream"
            async with asyncio.timeout(20):
                async for line in answer.content:
                    if line == b": still here\n":
                        break
        (tmp_path / "go").touch()
        await finished(builder, started)


async def test_stopping_a_builder_ends_the_streams_of_what_another_one_builds(shop: Shop, tmp_path: Path) -> None:
    shop.example.node("slow", waiting_for(tmp_path / "go"))
    async with shop.builder() as builder:
        started = await builder.client.start_import(shop.example.name)
        seen: list[int] = []

        async def follow(url: str) -> None:
            async with BuilderClient(url, shop.token) as client:
                async for number, _, _ in client.import_events(started.id):
                    seen.append(number)

        async with shop.builder() as other:
            follower = asyncio.create_task(follow(other.url))
            await eventually(lambda: len(seen) >= 4)
            stopping = time.monotonic()
        await follower
        assert time.monotonic() - stopping < 15  # not by the end of the server's patience
        (tmp_path / "go").touch()
        rest = [number async for number, _, _ in builder.client.import_events(started.id, after=seen[-1])]
        assert [*seen, *rest] == list(range(1, len(seen) + len(rest) + 1))


async def test_log_is_followed_line_by_line_while_the_build_runs_also_through_another_builder(
    shop: Shop, tmp_path: Path
) -> None:
    shop.example.node("slow", waiting_for(tmp_path / "go"))
    async with shop.builder() as builder, shop.builder() as other:
        started = await builder.client.start_import(shop.example.name)
        build_id = started.builds[0].id
        seen: dict[str, list[str]] = {"here": [], "there": []}

        async def follow(name: str, client: RunningBuilder) -> None:
            async for line in client.client.lines(f"/builds/{build_id}/log", follow="true"):
                seen[name].append(line)

        followers = [asyncio.create_task(follow("here", builder)), asyncio.create_task(follow("there", other))]
        await eventually(lambda: all(any("[build] first line" in line for line in lines) for lines in seen.values()))
        assert not any("second line" in line for lines in seen.values() for line in lines)
        partly = [line async for line in builder.client.lines(f"/builds/{build_id}/log")]
        assert any("first line" in line for line in partly)
        (tmp_path / "go").touch()
        async with asyncio.timeout(20):
            await asyncio.gather(*followers)
        require_success(await finished(builder, started))
        whole = (await shop.log(build_id)).splitlines()
        assert seen == {"here": whole, "there": whole}
        assert "bundle published" in whole[-1]
        for follow_ in ("true", "false"):
            again = [line async for line in other.client.lines(f"/builds/{build_id}/log", follow=follow_)]
            assert again == whole


async def test_log_that_moves_to_the_bucket_while_it_is_read_is_whole(shop: Shop) -> None:
    shop.example.node("chatty", "for (let n = 0; n < 3000; n++) console.log('line ' + n);")
    async with shop.builder() as builder:
        started = await builder.client.start_import(shop.example.name)
        build_id = started.builds[0].id

        async def read() -> list[str]:
            return [line async for line in builder.client.lines(f"/builds/{build_id}/log", follow="true")]

        followers = [asyncio.create_task(read())]
        while (await builder.client.import_(started.id)).state in (ImportState.QUEUED, ImportState.RUNNING):
            followers.append(asyncio.create_task(read()))
            await asyncio.sleep(0.1)
        logs = await asyncio.gather(*followers)
        whole = (await shop.log(build_id)).splitlines()
    assert len(whole) > 3000
    assert len(logs) > 10
    assert all(log == whole for log in logs)


async def test_client_that_leaves_ends_its_stream_only(shop: Shop, tmp_path: Path) -> None:
    shop.example.node("slow", waiting_for(tmp_path / "go"))
    async with shop.builder() as builder:
        started = await builder.client.start_import(shop.example.name)
        headers = {"Authorization": f"Bearer {shop.token}"}
        async with aiohttp.ClientSession(headers=headers) as session:
            async with session.get(f"{builder.url}/imports/{started.id}/events") as answer:
                await answer.content.readline()
            log = f"{builder.url}/builds/{started.builds[0].id}/log"
            async with session.get(log, params={"follow": "true"}) as answer:
                await answer.content.readline()
        (tmp_path / "go").touch()
        require_success(await finished(builder, started))


async def test_log_that_is_gone_from_the_bucket_is_not_found(shop: Shop) -> None:
    shop.example.python("notes")
    async with shop.builder() as builder:
        done = require_success(await import_now(builder, shop.example))
        store = shop.backend.objects()
        store.delete(f"logs/builds/{done.builds[0].id}.log")
        store.close()
        with pytest.raises(ServiceError) as missing:
            _ = [line async for line in builder.client.lines(f"/builds/{done.builds[0].id}/log")]
    assert (missing.value.status, missing.value.kind) == (404, "log-missing")
