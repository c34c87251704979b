"""Who comes next, who has to wait, and what there is no room for."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from libs.common.models import (
    Backoff,
    JobDefinition,
    QueueLimits,
    RetryOn,
    RetryPolicy,
    Run,
    RunRequest,
    RunState,
    StepDefinition,
    WorkflowDefinition,
)
from tests.backend import Backend
from tests.registry.running import Answer, RunningRegistry, running_registry
from tests.runner.bundles import node, publish
from tests.runner.running import OPEN, RunningRunner, runner_process, running_runner

_CODE = """
    import fs from 'node:fs';
    export async function handler({ parameters, run }) {
      const note = (what) => fs.appendFileSync(parameters.trace, `${what} ${parameters.name}\\n`);
      note('begin');
      while (parameters.gate && !fs.existsSync(parameters.gate)) await new Promise((go) => setTimeout(go, 20));
      if (parameters.failFirst && run.attempt === 1) { note('fail'); throw new Error('as asked'); }
      note('end');
    }
"""


@pytest.fixture
async def own_registry(own: Backend) -> AsyncIterator[RunningRegistry]:
    """A registry on it, with a bundle that says when it begins and ends, and waits for its gate."""
    async with running_registry(own) as registry:
        await publish(registry, node(_CODE))
        yield registry


class _Trace:
    """What runs have noted, and a gate that they wait for."""

    def __init__(self, place: Path) -> None:
        self.path = place / "trace"
        self.gate = place / "gate"
        self.path.touch()

    def parameters(self, name: str, *, gated: bool = False, **more: Any) -> dict[str, Any]:
        return {"trace": str(self.path), "name": name, **({"gate": str(self.gate)} if gated else {}), **more}

    @property
    def lines(self) -> list[str]:
        return self.path.read_text().splitlines()

    def order(self, word: str = "begin") -> list[str]:
        return [line.split()[1] for line in self.lines if line.startswith(word)]

    async def until(self, line: str) -> None:
        async with asyncio.timeout(30):
            while line not in self.lines:  # noqa: ASYNC110
                await asyncio.sleep(0.02)


@pytest.fixture
def trace(tmp_path: Path) -> _Trace:
    """A trace of the test's own."""
    return _Trace(tmp_path)


async def _start(runner: RunningRunner, trace: _Trace, name: str, *, gated: bool = False, **request: Any) -> Run:
    more = request.pop("more", {})
    parameters = trace.parameters(name, gated=gated, **more)
    target = {} if "job" in request else {"bundle": "hello@latest"}
    return await runner.client.start_run(RunRequest(parameters=parameters, **target, **request))


async def test_runs_of_higher_priority_come_first_and_of_equal_in_order(
    own: Backend, own_registry: RunningRegistry, tmp_path: Path, trace: _Trace
) -> None:
    await own_registry.client.put_job("urgent", JobDefinition(bundle="hello@latest", priority=5))
    async with running_runner(own, own_registry, tmp_path / "scratch", **OPEN) as runner:
        blockers = [await _start(runner, trace, f"blocker{n}", gated=True) for n in range(2)]
        for blocker in blockers:
            await runner.in_state(blocker.id, "running")
        runs = [
            await _start(runner, trace, "low", priority=-100),
            await _start(runner, trace, "first"),
            await _start(runner, trace, "second"),
            await _start(runner, trace, "job", job="urgent"),
            await _start(runner, trace, "highest", priority=100),
            await _start(runner, trace, "lowered", job="urgent", priority=-50),
        ]
        assert [run.priority for run in runs] == [-100, 0, 0, 5, 100, -50]
        await runner.request("POST", f"/runs/{blockers[0].id}/cancel")  # one place is free: they come one by one
        for run in runs:
            await runner.finished(run.id)
        assert trace.order()[2:] == ["highest", "job", "first", "second", "lowered", "low"]
        trace.gate.touch()
        await runner.finished(blockers[1].id)


async def test_of_runs_with_one_key_one_goes_at_a_time_and_the_others_hold_no_place(
    own: Backend, own_registry: RunningRegistry, tmp_path: Path, trace: _Trace
) -> None:
    key = "day {{ parameters.day }}"
    retry = RetryPolicy(on=[RetryOn.FAILED], backoff=Backoff(seconds=0.2))
    job = JobDefinition(bundle="hello@latest", concurrency_key=key, retry=retry)
    await own_registry.client.put_job("daily", job)
    async with running_runner(own, own_registry, tmp_path / "scratch", **OPEN) as runner:
        runs = [
            await _start(runner, trace, name, job="daily", gated=True, more={"day": 1, "failFirst": name == "a"})
            for name in "abc"
        ]
        assert {run.concurrency_key for run in runs} == {"day 1"}
        await trace.until("begin a")
        for other in (
            await _start(runner, trace, "other-day", job="daily", more={"day": 2}),
            await _start(runner, trace, "other-key", job="daily", concurrency_key="day 3", more={"day": 1}),
            await _start(runner, trace, "jobless", concurrency_key="day 1"),
        ):
            assert (await runner.finished(other.id)).state is RunState.SUCCEEDED
        assert [(await runner.client.run(run.id)).state.value for run in runs] == ["running", "queued", "queued"]
        await runner.request("POST", f"/runs/{runs[1].id}/cancel")
        trace.gate.touch()
        for run in runs:
            await runner.finished(run.id)
        mine = [line for line in trace.lines if line[-1] in "abc"]
        assert mine == ["begin a", "fail a", "begin a", "end a", "begin c", "end c"]


async def test_a_key_stays_taken_when_the_runner_of_its_run_is_killed(
    own: Backend, own_registry: RunningRegistry, tmp_path: Path, trace: _Trace
) -> None:
    async with runner_process(own, own_registry, tmp_path / "a", **OPEN, lease_seconds=2) as first:
        holder = await _start(first, trace, "holder", gated=True, concurrency_key="k")
        waiting = await _start(first, trace, "waiting", concurrency_key="k")
        await trace.until("begin holder")
        await first.kill()
    async with running_runner(own, own_registry, tmp_path / "b", **OPEN, lease_seconds=2) as second:
        await second.logged(holder.id, "attempt 2 of 3")
        assert (await second.client.run(waiting.id)).state is RunState.QUEUED
        trace.gate.touch()
        assert (await second.finished(waiting.id)).attempts == 1
        assert trace.order("end") == ["holder", "waiting"]


async def test_a_job_bounds_how_many_of_its_runs_go_at_a_time_also_as_steps(
    own: Backend, own_registry: RunningRegistry, tmp_path: Path, trace: _Trace
) -> None:
    job = JobDefinition(bundle="hello@latest", queue=QueueLimits(max_running=2))
    await own_registry.client.put_job("narrow", job)
    steps = [StepDefinition(name=f"step{n}", job="narrow", parameters=trace.parameters(f"s{n}")) for n in range(4)]
    await own_registry.client.put_workflow("wide", WorkflowDefinition(steps=steps))
    async with running_runner(own, own_registry, tmp_path / "scratch", **OPEN, concurrency=6) as runner:
        gated = [await _start(runner, trace, f"g{n}", job="narrow", gated=True) for n in range(3)]
        flow = await runner.client.start_workflow("wide", {})
        await trace.until("begin g0")
        await trace.until("begin g1")
        assert (await runner.finished((await _start(runner, trace, "free")).id)).state is RunState.SUCCEEDED
        assert trace.order() == ["g0", "g1", "free"] or trace.order() == ["g1", "g0", "free"]
        trace.gate.touch()
        await runner.workflow_finished(flow.id)
        for run in gated:
            await runner.finished(run.id)
        going = 0
        for line in trace.lines:
            if not line.endswith("free"):
                going += 1 if line.startswith("begin") else -1
                assert going <= 2
        assert len(trace.order("end")) == 8


async def test_turns_that_nobody_gave_are_given_later(
    own: Backend, own_registry: RunningRegistry, tmp_path: Path, trace: _Trace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.runner.app._TIDY_SECONDS", 0.5)
    async with running_runner(own, own_registry, tmp_path / "scratch", **OPEN) as runner:
        holder = await _start(runner, trace, "holder", gated=True, concurrency_key="k")
        waiting = await _start(runner, trace, "waiting", concurrency_key="k")
        # As if the runner had been killed after it had recorded the end of the first, and before it gave the turn.
        await own.fetch("UPDATE runner.runs SET state = 'succeeded', finished_at = now() WHERE id = $1", holder.id)
        assert (await runner.finished(waiting.id)).state is RunState.SUCCEEDED


async def test_what_there_is_no_room_for_is_refused_with_429(
    own: Backend, own_registry: RunningRegistry, tmp_path: Path, trace: _Trace
) -> None:
    job = JobDefinition(bundle="hello@latest", queue=QueueLimits(max_queued=2))
    await own_registry.client.put_job("short", job)
    await own_registry.client.put_workflow("flow", WorkflowDefinition(steps=[StepDefinition(name="s", job="short")]))
    async with running_runner(own, own_registry, tmp_path / "scratch", **OPEN, max_queued_runs=4) as runner:
        for n in range(2):
            blocker = await _start(runner, trace, f"blocker{n}", gated=True)
            await runner.in_state(blocker.id, "running")
        body = {"job": "short", "parameters": trace.parameters("x")}
        answers = await asyncio.gather(*(runner.request("POST", "/runs", json=body) for _ in range(6)))
        assert sorted(answer.status for answer in answers) == [202, 202, 429, 429, 429, 429]
        _assert_full(next(answer for answer in answers if answer.status == 429), 2, "of the job short")
        for _ in range(2):
            await _start(runner, trace, "x")
        for path, content in (("/runs", {"bundle": "hello@latest"}), ("/workflows/flow/runs", {})):
            _assert_full(await runner.request("POST", path, json=content), 4, "4 runs are queued")
        trace.gate.touch()
        async with asyncio.timeout(30):
            while (await runner.request("POST", "/runs", json=body)).status == 429:  # noqa: ASYNC110
                await asyncio.sleep(0.05)


def _assert_full(answer: Answer, limit: int, text: str) -> None:
    assert (answer.status, answer.headers["Retry-After"]) == (429, "5")
    assert (answer.json["type"], answer.json["maxQueued"]) == ("urn:stowage:problem:queue-full", limit)
    assert text in answer.json["detail"]


async def test_a_request_that_is_repeated_with_its_key_starts_one_run(
    own: Backend, own_registry: RunningRegistry, tmp_path: Path, trace: _Trace
) -> None:
    async with running_runner(own, own_registry, tmp_path / "scratch", **OPEN) as runner:
        body = {"bundle": "hello@latest", "parameters": trace.parameters("x")}
        headers = {"Idempotency-Key": "order 17"}
        answers = await asyncio.gather(*(runner.request("POST", "/runs", json=body, headers=headers) for _ in range(8)))
        assert {answer.status for answer in answers} <= {202, 409}
        (run_id,) = {answer.json["id"] for answer in answers if answer.status == 202}
        await runner.finished(run_id)
        again = await runner.request("POST", "/runs", json=body, headers=headers)
        assert (again.status, again.json["id"], again.json["state"]) == (202, run_id, "queued")
        assert (again.headers["Location"], again.headers["Idempotent-Replayed"]) == (f"/runs/{run_id}", "true")

        changed = await runner.request("POST", "/runs", json={**body, "priority": 1}, headers=headers)
        assert changed.status == 422
        assert changed.json["type"] == "urn:stowage:problem:idempotency-key-reused"
        other = await own_registry.token_for("bob", "runs:write")
        theirs = await runner.request("POST", "/runs", json=body, headers=headers, token=other)
        assert theirs.status == 202
        bad = await runner.request("POST", "/runs", json=body, headers={"Idempotency-Key": "k" * 201})
        assert bad.status == 400
        await runner.finished(theirs.json["id"])
        assert trace.order("end") == ["x", "x"]


@pytest.mark.parametrize(
    ("request_body", "status", "text"),
    [
        ({"bundle": "hello@latest", "priority": 101}, 400, "priority"),
        ({"bundle": "hello@latest", "concurrencyKey": ""}, 400, "concurrencyKey"),
        ({"bundle": "hello@latest", "concurrencyKey": "k" * 201}, 400, "concurrencyKey"),
        ({"job": "daily"}, 400, "there is no “day”"),
        ({"job": "daily", "parameters": {"day": None}}, 400, "is null with these parameters"),
        ({"job": "daily", "parameters": {"day": "d" * 201}}, 400, "up to 200 characters"),
    ],
)
async def test_keys_and_priorities_that_make_no_sense_are_refused(
    registry: RunningRegistry, runner: RunningRunner, request_body: dict[str, Any], status: int, text: str
) -> None:
    await publish(registry, node(_CODE))
    await registry.client.put_job("daily", JobDefinition(bundle="hello@latest", concurrency_key="{{parameters.day}}"))
    answer = await runner.request("POST", "/runs", json=request_body)
    assert (answer.status, text in answer.json["detail"] + str(answer.json.get("errors"))) == (status, True), answer
