"""What a run is tried again after, when, and what one sees of it."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from libs.common.models import (
    Backoff,
    Failure,
    JobDefinition,
    Limits,
    RetryOn,
    RetryPolicy,
    Run,
    RunRequest,
    RunState,
    StepDefinition,
    StepState,
    WorkflowDefinition,
)
from services.runner.endings import Outcome
from services.runner.retries import seconds_to_next_attempt
from tests.backend import Backend, fresh_backend
from tests.registry.running import RunningRegistry, running_registry
from tests.runner.bundles import node, publish
from tests.runner.running import OPEN, RunningRunner, runner_process, running_runner
from tests.servers import Servers

_CODE = """
    export async function handler({ parameters, run }) {
      if (run.attempt < (parameters.from ?? 1)) {
        if (parameters.hang) await new Promise((go) => setTimeout(go, 60000));
        throw new Error(`not at attempt ${run.attempt}`);
      }
      return run.attempt;
    }
"""
_AT_ONCE = Backoff(seconds=0)


@pytest.fixture(autouse=True, scope="module")
async def _bundle(registry: RunningRegistry) -> None:
    await publish(registry, node(_CODE))


async def _start(registry: RunningRegistry, runner: RunningRunner, retry: RetryPolicy, **parameters: Any) -> Run:
    definition = JobDefinition(bundle="hello@latest", retry=retry, limits=Limits(timeout_seconds=1))
    await registry.client.put_job("flaky", definition)
    return await runner.client.start_run(RunRequest(job="flaky", parameters=parameters))


async def _attempts(runner: RunningRunner, run_id: str) -> list[dict[str, Any]]:
    items: list[dict[str, Any]] = (await runner.request("GET", f"/runs/{run_id}/attempts")).json["items"]
    return items


async def test_a_failed_run_is_not_tried_again_unless_its_job_says_so(
    registry: RunningRegistry, runner: RunningRunner
) -> None:
    run = await runner.finished((await _start(registry, runner, RetryPolicy(), **{"from": 2})).id)
    assert (run.state, run.attempts) == (RunState.FAILED, 1)


@pytest.mark.parametrize(("on", "parameters"), [("failed", {}), ("timed_out", {"hang": True})])
async def test_a_run_is_tried_again_after_what_its_job_names_and_each_attempt_is_told(
    registry: RunningRegistry, runner: RunningRunner, on: str, parameters: dict[str, Any]
) -> None:
    retry = RetryPolicy(on=[RetryOn(on)], backoff=_AT_ONCE)
    run = await runner.finished((await _start(registry, runner, retry, **{"from": 3}, **parameters)).id)
    assert (run.state, run.result, run.attempts, run.error) == (RunState.SUCCEEDED, 3, 3, None)
    assert run.next_attempt_at is None
    attempts = await _attempts(runner, run.id)
    assert [(attempt["number"], attempt["state"]) for attempt in attempts] == [(1, on), (2, on), (3, "succeeded")]
    kind = {"failed": "Error", "timed_out": "timed_out"}[on]
    assert [attempt["error"] and attempt["error"]["type"] for attempt in attempts] == [kind, kind, None]
    assert all(attempt["runner"] and attempt["startedAt"] <= attempt["endedAt"] for attempt in attempts)
    log = await runner.log(run.id)
    for number in (1, 2):
        assert f"attempt {number} of 3 {on}: {kind}: " in log
    assert log.count("The next one begins in 0.0 seconds.") == 2
    actions = [event["action"] for event in await runner.audit(f"run/{run.id}")]
    assert actions == ["run.accepted", "run.finished"]


async def test_the_last_attempt_says_why_the_run_failed(registry: RunningRegistry, runner: RunningRunner) -> None:
    retry = RetryPolicy(attempts=2, on=[RetryOn.FAILED], backoff=_AT_ONCE)
    run = await runner.finished((await _start(registry, runner, retry, **{"from": 9})).id)
    assert run.error is not None
    assert (run.state, run.attempts, run.error.message) == (RunState.FAILED, 2, "not at attempt 2")


async def test_a_run_that_waits_for_another_attempt_shows_when_and_why_and_is_cancelled_at_once(
    registry: RunningRegistry, runner: RunningRunner
) -> None:
    backoff = Backoff(kind="fixed", seconds=600, max_seconds=600, jitter=0)
    run = await _start(registry, runner, RetryPolicy(on=[RetryOn.FAILED], backoff=backoff), **{"from": 2})
    async with asyncio.timeout(30):
        while (waiting := await runner.client.run(run.id)).next_attempt_at is None:  # noqa: ASYNC110
            await asyncio.sleep(0.02)
    assert waiting.state is RunState.QUEUED
    assert waiting.error is not None
    assert waiting.error.message == "not at attempt 1"
    assert 500 < (waiting.next_attempt_at - datetime.now(UTC)).total_seconds() <= 600
    answer = await runner.request("POST", f"/runs/{run.id}/cancel")
    assert (answer.json["state"], answer.json["nextAttemptAt"]) == ("cancelled", None)
    assert answer.json["error"]["message"] == "The run was cancelled while it waited for another attempt."
    assert [attempt["state"] for attempt in await _attempts(runner, run.id)] == ["failed"]
    assert await runner.backend.fetch("SELECT FROM runner.queue_pgqueuer WHERE dedupe_key = $1", run.id) == []


async def test_a_step_of_a_workflow_shows_only_what_its_run_came_to(
    registry: RunningRegistry, runner: RunningRunner
) -> None:
    retry = RetryPolicy(on=[RetryOn.FAILED], backoff=_AT_ONCE)
    await registry.client.put_job("flaky", JobDefinition(bundle="hello@latest", retry=retry))
    steps = [
        StepDefinition(name="first", job="flaky", parameters={"from": 2}),
        StepDefinition(name="second", job="flaky", depends_on=["first"]),
    ]
    await registry.client.put_workflow("flow", WorkflowDefinition(steps=steps))
    done = await runner.workflow_finished((await runner.client.start_workflow("flow", {})).id)
    assert [(step.state, step.result) for step in done.steps] == [(StepState.SUCCEEDED, 2), (StepState.SUCCEEDED, 1)]


async def test_what_cannot_change_is_not_tried_again(registry: RunningRegistry, runner: RunningRunner) -> None:
    digest = await publish(registry, node(_CODE, slug="gone"), "gone")
    key = f"artifacts/sha256/{digest[7:9]}/{digest[7:]}.tgz"
    registry.objects.delete(key)
    retry = RetryPolicy(on=list(RetryOn), backoff=_AT_ONCE)
    await registry.client.put_job("gone", JobDefinition(bundle="gone@latest", retry=retry))
    run = await runner.finished((await runner.client.start_run(RunRequest(job="gone"))).id)
    assert run.error is not None
    assert (run.error.type, run.attempts) == ("object_missing", 1)


async def test_a_bucket_that_is_away_before_the_handler_is_called_is_waited_for(
    servers: Servers, tmp_path: Path
) -> None:
    async with _own(servers) as (own, registry):
        retry = RetryPolicy(attempts=2, backoff=Backoff(seconds=0.1))
        await registry.client.put_job("patient", JobDefinition(bundle="hello@latest", retry=retry))
        needed = ("database", "queue")
        async with running_runner(
            own, registry, tmp_path / "scratch", s3_endpoint="http://127.0.0.1:9", needed_checks=needed
        ) as runner:
            run = await runner.finished((await runner.client.start_run(RunRequest(job="patient"))).id)
            assert run.error is not None
            assert (run.error.type, run.attempts) == ("object_store_unavailable", 2)


async def test_a_job_that_is_not_tried_again_after_its_runner_was_lost_is_lost(
    servers: Servers, tmp_path: Path
) -> None:
    async with _own(servers) as (own, registry):
        await registry.client.put_job("once", JobDefinition(bundle="hello@latest", retry=RetryPolicy(on=[])))
        async with runner_process(own, registry, tmp_path / "a", lease_seconds=2, **OPEN) as first:
            run = await first.client.start_run(RunRequest(job="once", parameters={"from": 9, "hang": True}))
            await first.in_state(run.id, "running")
            await first.kill()
        async with running_runner(own, registry, tmp_path / "b", lease_seconds=2, **OPEN) as second:
            done = await second.finished(run.id)
            assert (done.state, done.attempts) == (RunState.LOST, 1)
            assert [attempt["state"] for attempt in await _attempts(second, run.id)] == ["lost"]


def _outcome(kind: str, state: RunState = RunState.FAILED) -> Outcome:
    return Outcome(state, error=Failure(type=kind, message=""))


@pytest.mark.parametrize(
    ("outcome", "called", "expected"),
    [
        (_outcome("Error"), True, True),
        (_outcome("SyntaxError"), False, True),
        (_outcome("integrity"), True, True),
        (_outcome("integrity"), False, False),
        (_outcome("platform_mismatch"), False, False),
        (_outcome("object_store_unavailable"), False, False),
        (_outcome("object_store_unavailable"), True, True),
        (_outcome("timed_out", RunState.TIMED_OUT), True, False),
        (_outcome("cancelled", RunState.CANCELLED), True, False),
        (Outcome(RunState.SUCCEEDED), True, False),
    ],
)
def test_failed_means_what_the_job_itself_did(outcome: Outcome, called: bool, expected: bool) -> None:
    policy = RetryPolicy(on=[RetryOn.FAILED])
    seconds = seconds_to_next_attempt(policy, outcome, attempt=1, max_attempts=3, handler_called=called)
    assert (seconds is not None) == expected
    assert seconds_to_next_attempt(policy, outcome, attempt=3, max_attempts=3, handler_called=called) is None


def test_pauses_grow_up_to_their_limit_and_vary_by_their_jitter() -> None:
    def pauses(backoff: Backoff) -> list[float | None]:
        policy = RetryPolicy(attempts=20, on=[RetryOn.FAILED], backoff=backoff)
        return [
            seconds_to_next_attempt(policy, _outcome("Error"), attempt=n, max_attempts=20, handler_called=True)
            for n in range(1, 6)
        ]

    assert pauses(Backoff(kind="fixed", seconds=3, jitter=0)) == [3] * 5
    assert pauses(Backoff(seconds=3, max_seconds=20, jitter=0)) == [3, 6, 12, 20, 20]
    varied = pauses(Backoff(kind="fixed", seconds=100, jitter=0.1))
    assert all(seconds is not None and 90 <= seconds <= 110 for seconds in varied)
    assert len(set(varied)) > 1


@contextlib.asynccontextmanager
async def _own(servers: Servers) -> AsyncIterator[tuple[Backend, RunningRegistry]]:
    async with fresh_backend(servers) as backend, running_registry(backend) as registry:
        await publish(registry, node(_CODE))
        yield backend, registry
