"""Runners that are killed or stopped, and a database that goes away: each run still ends, and ends once."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from pathlib import Path
from uuid import uuid4

import asyncpg
import pytest

from libs.common.database import Notifications, open_pool
from libs.common.journal import Journal
from libs.common.models import JobDefinition, RetryPolicy, RunRequest, RunState
from services.runner.lifecycle import Leased, Lifecycle, Verdict
from services.runner.turns import Turns
from tests.backend import Backend
from tests.registry.running import RunningRegistry, running_registry
from tests.runner.bundles import node, publish
from tests.runner.running import OPEN, RunnerProcess, RunningRunner, alive, runner_process, running_runner

_SLOW = """
    import fs from 'node:fs';
    export async function handler(context) {
      fs.appendFileSync(context.parameters.trace, `${context.run.attempt} `);
      context.logger(`attempt ${context.run.attempt} pid ${process.pid}`);
      await new Promise((go) => setTimeout(go, context.run.attempt >= context.parameters.fastFrom ? 10 : 60000));
      return context.run.attempt;
    }
"""


@pytest.fixture
async def own_registry(own: Backend) -> AsyncIterator[RunningRegistry]:
    """A registry on it, with the slow bundle."""
    async with running_registry(own) as registry:
        await publish(registry, node(_SLOW))
        yield registry


@pytest.mark.parametrize("restarted", [False, True], ids=["another runner", "the same, restarted"])
async def test_a_run_whose_runner_is_killed_is_taken_over_when_the_lease_ends(
    own: Backend, own_registry: RunningRegistry, tmp_path: Path, restarted: bool
) -> None:
    scratch, trace = tmp_path / "scratch", tmp_path / "trace"
    async with contextlib.AsyncExitStack() as stack:
        first = await stack.enter_async_context(_runner_process(own, own_registry, scratch))
        run = await first.start(parameters={"trace": str(trace), "fastFrom": 2})
        await first.logged(run.id, "attempt 1 pid")
        pid = await _pid(first, run.id)
        second = None
        if not restarted:
            second = await stack.enter_async_context(_runner_process(own, own_registry, scratch))
        await first.kill()
        killed_at = time.monotonic()
        if second is None:
            second = await stack.enter_async_context(_runner_process(own, own_registry, scratch))
        done = await second.finished(run.id)
        assert (done.state, done.result, done.attempts) == (RunState.SUCCEEDED, 2, 2)
        assert time.monotonic() - killed_at > 1
        assert trace.read_text() == "1 2 "
        assert alive([pid]) == []
        log = await second.log(run.id)
        assert "attempt 1 of 3" in log
        assert "attempt 2 of 3" in log
        assert [event["action"] for event in await second.audit(f"run/{run.id}")] == ["run.accepted", "run.finished"]
    # What the killed runner left was swept by the next one that started.
    if restarted:
        assert list(scratch.iterdir()) == []


async def test_a_run_that_takes_its_runner_down_every_time_is_lost(
    own: Backend, own_registry: RunningRegistry, tmp_path: Path
) -> None:
    definition = JobDefinition(bundle="hello@latest", retry=RetryPolicy(attempts=2))
    await own_registry.client.put_job("fatal", definition)
    run_id = ""
    for attempt in (1, 2):
        async with _runner_process(own, own_registry, tmp_path / "scratch") as runner:
            if not run_id:
                parameters = {"trace": str(tmp_path / "trace"), "fastFrom": 9}
                run_id = (await runner.client.start_run(RunRequest(job="fatal", parameters=parameters))).id
            await runner.logged(run_id, f"attempt {attempt} pid")
            await runner.kill()
    async with _runner_process(own, own_registry, tmp_path / "scratch") as runner:
        run = await runner.finished(run_id)
        assert (run.state, run.attempts) == (RunState.LOST, 2)
        assert run.error is not None
        assert run.error.message.startswith("The runner that made attempt 2 of 2 was lost")
        assert "attempt 2 pid" in await runner.log(run_id)
        rows = await own.fetch("SELECT count(*) AS n FROM runner.journal")
        assert rows[0]["n"] == 0
        assert (await runner.audit(f"run/{run_id}"))[-1]["detail"] == {"state": "lost", "attempts": 2, "error": "lost"}
    assert (tmp_path / "trace").read_text() == "1 2 "


async def test_a_cancel_that_the_killed_runner_did_not_see_is_not_forgotten(
    own: Backend, own_registry: RunningRegistry, tmp_path: Path
) -> None:
    async with running_runner(own, own_registry, tmp_path / "other", **OPEN, lease_seconds=2) as other:
        async with _runner_process(own, own_registry, tmp_path / "scratch") as first:
            await _pause(other)
            run = await first.start(parameters={"trace": str(tmp_path / "trace"), "fastFrom": 9})
            await first.logged(run.id, "attempt 1 pid")
            first.process.kill()
            await other.request("POST", f"/runs/{run.id}/cancel")
        done = await other.finished(run.id)
        assert (done.state, done.attempts) == (RunState.CANCELLED, 1)


async def test_on_sigterm_runs_may_end_and_others_are_given_back(
    own: Backend, own_registry: RunningRegistry, tmp_path: Path
) -> None:
    scratch, trace = tmp_path / "scratch", tmp_path / "trace"
    code = """
        export async function handler({ parameters }) {
          await new Promise((go) => setTimeout(go, parameters.ms));
          return 'done';
        }
    """
    await publish(own_registry, node(code, slug="brief"), "brief")
    async with _runner_process(own, own_registry, scratch, drain_seconds=2) as first:
        long = await first.start(parameters={"trace": str(trace), "fastFrom": 2})
        await first.logged(long.id, "attempt 1 pid")
        short = await first.start("brief@latest", parameters={"ms": 1000})
        await first.in_state(short.id, "running")
        waiting = await first.start("brief@latest", parameters={"ms": 1})
        begun = time.monotonic()
        assert await first.terminate() == 0
        assert time.monotonic() - begun < 10
    assert list(scratch.iterdir()) == []
    states = {row["id"]: row["state"] for row in await own.fetch("SELECT id, state FROM runner.runs")}
    assert states == {long.id: "queued", short.id: "succeeded", waiting.id: "queued"}
    (row,) = await own.fetch("SELECT lease, attempts, max_attempts FROM runner.runs WHERE id = $1", long.id)
    assert tuple(row) == (None, 1, 4)
    async with _runner_process(own, own_registry, scratch) as second:
        done = await second.finished(long.id)
        assert (done.result, done.attempts) == (2, 2)
        assert (await second.finished(waiting.id)).result == "done"
        assert "the runner stops; the run is queued again" in await second.log(long.id)
    assert trace.read_text() == "1 2 "


async def test_what_a_runner_hands_back_another_takes_without_waiting_for_the_lease_to_end(
    own: Backend, own_registry: RunningRegistry, tmp_path: Path
) -> None:
    parameters = {"trace": str(tmp_path / "trace"), "fastFrom": 2}
    async with _runner_process(own, own_registry, tmp_path / "first", lease_seconds=600) as first:
        runs = [await first.start(parameters=parameters) for _ in range(2)]
        for run in runs:
            await first.logged(run.id, "attempt 1 pid")
        async with running_runner(own, own_registry, tmp_path / "other", **OPEN, lease_seconds=600) as other:
            assert await first.terminate() == 0
            for run in runs:
                done = await other.finished(run.id)
                assert (done.state, done.attempts) == (RunState.SUCCEEDED, 2)
                attempts = (await other.request("GET", f"/runs/{run.id}/attempts")).json["items"]
                assert [attempt["state"] for attempt in attempts] == ["handed_back", "succeeded"]
                assert len({attempt["runner"] for attempt in attempts}) == 2
    assert await own.fetch("SELECT FROM runner.queue_pgqueuer") == []


async def test_on_sigterm_a_run_that_must_not_be_tried_again_ends_lost_and_is_executed_once(
    own: Backend, own_registry: RunningRegistry, tmp_path: Path
) -> None:
    trace = tmp_path / "trace"
    await own_registry.client.put_job("once", JobDefinition(bundle="hello@latest", retry=RetryPolicy(on=[])))
    async with _runner_process(own, own_registry, tmp_path / "scratch") as first:
        parameters = {"trace": str(trace), "fastFrom": 2}
        run = await first.client.start_run(RunRequest(job="once", parameters=parameters))
        await first.logged(run.id, "attempt 1 pid")
        assert await first.terminate() == 0
    async with _runner_process(own, own_registry, tmp_path / "scratch") as second:
        done = await second.client.run(run.id)
        assert (done.state, done.attempts) == (RunState.LOST, 1)
        assert done.error is not None
        assert done.error.message.startswith("The runner had to stop")
        assert "attempt 1 pid" in await second.log(run.id)
    assert await own.fetch("SELECT FROM runner.queue_pgqueuer") == []
    assert trace.read_text() == "1 "


async def test_connections_that_are_cut_are_replaced_and_runs_go_on(
    own: Backend, own_registry: RunningRegistry, tmp_path: Path
) -> None:
    code = """
        export async function handler(context) {
          for (let i = 0; i < 40; i++) {
            context.logger(`line ${i}`);
            context.progress(i / 40, 'busy');
            await new Promise((go) => setTimeout(go, 50));
          }
          return 'done';
        }
    """
    await publish(own_registry, node(code, slug="chatty"), "chatty")
    async with running_runner(own, own_registry, tmp_path / "scratch", **OPEN, lease_seconds=3) as runner:
        runs = [await runner.start("chatty@latest") for _ in range(6)]
        cutting = asyncio.create_task(_cut_connections(own, seconds=6))
        for run in runs:
            done = await _finished_in_spite_of_cuts(runner, run.id)
            assert (done["state"], done["result"], done["attempts"]) == ("succeeded", "done", 1)
        assert await cutting > 10
        for run in runs:
            log = await runner.log(run.id)
            assert [line for line in log.splitlines() if "line 39" in line]
            assert log.count("[logger] line ") == 40
            actions = [event["action"] for event in await runner.audit(f"run/{run.id}")]
            assert actions == ["run.accepted", "run.finished"]
        assert (await runner.run("chatty@latest")).result == "done"


async def test_a_runner_that_lost_its_lease_lets_go_and_records_nothing(
    own: Backend, own_registry: RunningRegistry, tmp_path: Path
) -> None:
    async with running_runner(own, own_registry, tmp_path / "scratch", **OPEN) as runner:
        run = await runner.start(parameters={"trace": str(tmp_path / "trace"), "fastFrom": 9})
        await runner.logged(run.id, "attempt 1 pid")
        pid = await _pid(runner, run.id)
        # As if another runner had taken it over, and ended it.
        await own.fetch(
            "UPDATE runner.runs SET lease = gen_random_uuid(), state = 'succeeded', result = '\"theirs\"', "
            "finished_at = now() WHERE id = $1",
            run.id,
        )
        async with asyncio.timeout(10):
            while alive([pid]) or runner.left_in_scratch():  # noqa: ASYNC110
                await asyncio.sleep(0.05)
        done = await runner.client.run(run.id)
        assert (done.state, done.result) == (RunState.SUCCEEDED, "theirs")
        assert [event["action"] for event in await runner.audit(f"run/{run.id}")] == ["run.accepted"]


async def test_a_lease_that_is_asked_for_twice_begins_one_attempt_and_another_begins_the_next(
    own: Backend, own_registry: RunningRegistry, tmp_path: Path
) -> None:
    async with running_runner(own, own_registry, tmp_path / "scratch", **OPEN) as runner:
        run = await runner.run(parameters={"trace": str(tmp_path / "trace"), "fastFrom": 1})
    await own.fetch(
        "UPDATE runner.runs SET state = 'queued', attempts = 0, max_attempts = 2, finished_at = NULL, log_key = NULL "
        "WHERE id = $1",
        run.id,
    )
    async with open_pool(own.database_url, size=4, application_name="test") as pool:
        journal = Journal(pool, "runner", Notifications(own.database_url, "runner_journal"))
        lifecycle = Lifecycle(pool, journal, Turns(pool), lambda _state: None, runner="test", max_parameters_bytes=1000)
        tokens = [uuid4(), uuid4(), uuid4()]
        found = [await lifecycle.lease(run.id, token) for token in sorted(tokens * 2)]
        assert [(leased.verdict, leased.assignment.attempts) for leased in found if isinstance(leased, Leased)] == [
            (Verdict.EXECUTE, 1),
            (Verdict.EXECUTE, 1),
            (Verdict.EXECUTE, 2),
            (Verdict.EXECUTE, 2),
            (Verdict.GIVE_UP, 2),
            (Verdict.GIVE_UP, 2),
        ]


async def test_two_runners_share_the_queue_and_no_run_is_executed_twice(
    own: Backend, own_registry: RunningRegistry, tmp_path: Path
) -> None:
    code = """
        import fs from 'node:fs';
        export function handler(context) { fs.appendFileSync(context.parameters.trace, context.run.id + '\\n') }
    """
    await publish(own_registry, node(code, slug="once"), "once")
    trace = tmp_path / "trace"
    async with (
        running_runner(own, own_registry, tmp_path / "a", **OPEN) as one,
        running_runner(own, own_registry, tmp_path / "b", **OPEN) as two,
    ):
        runs = await asyncio.gather(
            *(runner.start("once@latest", parameters={"trace": str(trace)}) for runner in (one, two) * 10)
        )
        for run in runs:
            assert (await one.finished(run.id)).attempts == 1
    assert sorted(trace.read_text().split()) == sorted(run.id for run in runs)


async def test_twenty_runs_go_side_by_side_where_the_settings_say_so(
    own: Backend, own_registry: RunningRegistry, tmp_path: Path
) -> None:
    code = """
        import fs from 'node:fs';
        export async function handler({ parameters }) {
          fs.writeFileSync(`${parameters.place}/${process.pid}`, '');
          while (fs.readdirSync(parameters.place).length < 20) await new Promise((go) => setTimeout(go, 50));
        }
    """
    await publish(own_registry, node(code, slug="together"), "together")
    (tmp_path / "place").mkdir()
    async with running_runner(own, own_registry, tmp_path / "scratch", **OPEN, concurrency=20) as runner:
        parameters = {"place": str(tmp_path / "place")}
        runs = [await runner.start("together@latest", parameters=parameters) for _ in range(20)]
        for run in runs:
            assert (await runner.finished(run.id)).state is RunState.SUCCEEDED
    assert list((tmp_path / "scratch").iterdir()) == []


def _runner_process(
    backend: Backend, registry: RunningRegistry, scratch: Path, **settings: object
) -> contextlib.AbstractAsyncContextManager[RunnerProcess]:
    return runner_process(backend, registry, scratch, **{**OPEN, "lease_seconds": 2, "drain_seconds": 0, **settings})


async def _pause(runner: RunningRunner) -> None:
    """Keep both places of a runner taken for a few seconds."""
    for _ in range(2):
        run = await runner.start(parameters={"trace": "/dev/null", "fastFrom": 9}, timeoutSeconds=3)
        await runner.in_state(run.id, "running")


async def _pid(runner: RunningRunner, run_id: str) -> int:
    line = next(line for line in (await runner.log(run_id)).splitlines() if " pid " in line)
    return int(line.rpartition(" ")[2])


async def _cut_connections(backend: Backend, *, seconds: float) -> int:
    """Cut the runner's connections again and again; how many there were."""
    connection = await asyncpg.connect(backend.database_url)
    cut = 0
    try:
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            await asyncio.sleep(0.7)
            cut += await connection.fetchval(
                "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity "
                "WHERE application_name LIKE 'stowage-runner%' AND datname = current_database()"
            )
    finally:
        await connection.close()
    return cut


async def _finished_in_spite_of_cuts(runner: RunningRunner, run_id: str) -> dict[str, object]:
    async with asyncio.timeout(60):
        while True:
            answer = await runner.request("GET", f"/runs/{run_id}")
            assert answer.status in (200, 503), answer.body
            if answer.status == 200 and answer.json["finishedAt"] is not None:
                found: dict[str, object] = answer.json
                return found
            await asyncio.sleep(0.05)
