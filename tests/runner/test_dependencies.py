"""What happens while the registry or the bucket is away, and who is remembered for how long."""

import asyncio
import time
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from libs.common.client import RegistryClient, ServiceError
from libs.common.database import Notifications, open_pool
from libs.common.errors import Unavailable
from libs.common.introspection import CachedIntrospection
from libs.common.journal import Journal
from libs.common.models import Introspection, RunState
from libs.common.objects import run_log_prefix
from libs.common.rate import UnknownTokens, refusals_counter
from services.runner.logs import RunLogs
from tests.backend import Backend
from tests.registry.running import RunningRegistry, running_registry
from tests.runner.bundles import node, publish
from tests.runner.running import running_runner


def _introspection(client: RegistryClient) -> CachedIntrospection:
    return CachedIntrospection(client, UnknownTokens(50, "UNKNOWN_TOKENS", refusals_counter(CollectorRegistry())))


class _CountingClient(RegistryClient):
    asked = 0

    async def introspect(self, token: str) -> Introspection:
        self.asked += 1
        return await super().introspect(token)


async def test_whom_a_token_speaks_for_is_asked_once_in_a_few_seconds(registry: RunningRegistry) -> None:
    token = await registry.token_for("dora", "runs:read")
    async with _CountingClient(registry.url, registry.token) as client:
        introspection = _introspection(client)
        found = [await introspection(token) for _ in range(20)]
        assert client.asked == 1
        assert found[0] is not None
        assert (found[0].subject, found[0].scopes) == ("dora", ["runs:read"])
        assert [await introspection("stw_wrong") for _ in range(20)] == [None] * 20
        assert client.asked == 2


async def test_what_was_remembered_is_forgotten_again(
    registry: RunningRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = time.monotonic()
    monkeypatch.setattr("libs.common.introspection.time", _Clock(lambda: now))
    token = await registry.token_for("emil", "runs:read")
    (row,) = await registry.backend.fetch("SELECT id FROM registry.tokens WHERE subject = 'emil'")
    async with _CountingClient(registry.url, registry.token) as client:
        introspection = _introspection(client)
        assert await introspection(token) is not None
        assert await introspection("stw_wrong") is None
        answer = await registry.request("DELETE", f"/tokens/{row['id']}")
        assert answer.status in (200, 204), answer.body
        now += 4
        assert await introspection(token) is not None
        assert await introspection("stw_wrong") is None
        assert client.asked == 3
        now += 2
        assert await introspection(token) is None
        for number in range(5000):
            introspection._answers[str(number).encode()] = (now + 1, None)
        await introspection("stw_other")
        assert len(introspection._answers) <= 4096


async def test_a_registry_that_cannot_be_asked_is_no_answer(registry: RunningRegistry) -> None:
    async with RegistryClient("http://127.0.0.1:9", "token") as client:
        with pytest.raises(Unavailable):
            await _introspection(client)("stw_any")
    async with RegistryClient(registry.url, "stw_not_a_service") as client:
        with pytest.raises(Unavailable, match="check the service token"):
            await _introspection(client)("stw_any")
        with pytest.raises(ServiceError):
            await client.introspect("stw_any")


async def test_without_the_registry_what_is_queued_still_runs_and_nothing_new_is_accepted(
    own: Backend, tmp_path: Path
) -> None:
    async with running_registry(own) as registry:
        await publish(registry, node("export const handler = () => new Promise((go) => setTimeout(go, 1500))"))
        runner_context = running_runner(own, registry, tmp_path / "scratch")
        runner = await runner_context.__aenter__()
        runs = [await runner.start() for _ in range(3)]
    try:
        refused = await runner.request("POST", "/runs", json={"bundle": "hello@latest"})
        assert (refused.status, "can't be reached" in refused.json["detail"]) == (503, True)
        stranger = await runner.request("GET", "/runs", token="stw_stranger")
        assert stranger.status == 503
        async with asyncio.timeout(20):
            while True:
                rows = await own.fetch("SELECT state FROM runner.runs")
                if {row["state"] for row in rows} == {"succeeded"}:
                    break
                await asyncio.sleep(0.05)
        assert len(rows) == len(runs)
    finally:
        await runner_context.__aexit__(None, None, None)


async def test_a_log_that_could_not_be_archived_stays_readable_and_is_archived_later(
    own: Backend, tmp_path: Path
) -> None:
    async with running_registry(own) as registry:
        await publish(registry, node("export const handler = () => 1"))
        async with running_runner(
            own, registry, tmp_path / "scratch", s3_endpoint="http://127.0.0.1:9", needed_checks=("database", "queue")
        ) as runner:
            run = await runner.run()
            assert run.state is RunState.FAILED
            text = await runner.log(run.id)
            assert "could not be fetched" in text
        await own.fetch("UPDATE runner.runs SET finished_at = finished_at - interval '2 minutes'")
        async with open_pool(own.database_url, size=4, application_name="test") as pool:
            objects = own.objects()
            logs = RunLogs(pool, Journal(pool, "runner", Notifications(own.database_url, "runner_journal")), objects)
            await asyncio.gather(*(logs.archive_leftovers() for _ in range(3)))
            (key,) = own.keys(run_log_prefix(run.id))
            with objects.read(key) as body:
                assert b"".join(body).decode() == text
            objects.close()
        (row,) = await own.fetch("SELECT count(*) AS lines FROM runner.journal")
        assert row["lines"] == 0
        async with running_runner(own, registry, tmp_path / "scratch") as runner:
            assert await runner.log(run.id) == text


async def test_a_runner_that_stops_lets_followers_of_logs_go(own: Backend, tmp_path: Path) -> None:
    async with running_registry(own) as registry:
        body = "export const handler = () => { console.log('here'); return new Promise((go) => setTimeout(go, 60000)) }"
        await publish(registry, node(body))
        async with running_runner(own, registry, tmp_path / "scratch", drain_seconds=0) as runner:
            run = await runner.start()
            await runner.logged(run.id, "here")
            following = asyncio.create_task(runner.request("GET", f"/runs/{run.id}/log?follow=true"))
            await asyncio.sleep(0.3)
            stopped = time.monotonic()
            assert not following.done()
            stopping = asyncio.create_task(_answer(following))
            runner.stop.set()
            assert "here" in await stopping
            assert time.monotonic() - stopped < 4


async def _answer(following: "asyncio.Task[Any]") -> str:
    answer: str = (await following).body.decode()
    return answer


class _Clock:
    def __init__(self, monotonic: Any) -> None:
        self.monotonic = monotonic
