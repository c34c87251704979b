"""Accepting runs: references, pinning, parameters, who may."""

import asyncio
import json

import pytest

from libs.common.models import JobDefinition, Limits, RetryPolicy, RunRequest, RunState
from tests.registry.running import RunningRegistry
from tests.runner.bundles import node, publish
from tests.runner.running import RunningRunner

_ECHO = "export const handler = (context) => context.parameters"


def _returns(value: str) -> bytes:
    return node(f"export const handler = () => '{value}'")


async def test_a_run_is_accepted_with_its_place_and_one_event(registry: RunningRegistry, runner: RunningRunner) -> None:
    digest = await publish(registry, node(_ECHO))
    answer = await runner.request("POST", "/runs", json={"bundle": "hello@1.0.0", "parameters": {"a": 1}})
    assert answer.status == 202
    run = answer.json
    assert answer.headers["Location"] == f"/runs/{run['id']}"
    assert (run["slug"], run["version"], run["digest"]) == ("hello", "1.0.0", digest)
    phases = {"queuedMs", "firstByteMs", "fetchMs", "startMs", "handlerMs", "uploadMs", "removeMs"}
    assert run["timings"].keys() == phases
    done = await runner.finished(run["id"])
    assert done.result == {"a": 1}
    timings = done.timings.model_dump()
    assert all(isinstance(value, int) and 0 <= value < 30_000 for value in timings.values()), timings
    accepted, finished = await runner.audit(f"run/{run['id']}")
    assert (accepted["actor"], accepted["action"], accepted["digest"]) == ("admin", "run.accepted", digest)
    assert accepted["detail"] == {"bundle": "hello@1.0.0", "revision": done.revision}
    assert (finished["action"], finished["detail"]) == ("run.finished", {"state": "succeeded", "attempts": 1})
    rows = await runner.backend.fetch("SELECT count(*) AS n FROM runner.queue_pgqueuer")
    for _ in range(100):
        if not rows[0]["n"]:
            break
        await asyncio.sleep(0.05)
        rows = await runner.backend.fetch("SELECT count(*) AS n FROM runner.queue_pgqueuer")
    assert rows[0]["n"] == 0


async def test_what_is_published_after_acceptance_does_not_change_what_runs(
    registry: RunningRegistry, runner: RunningRunner
) -> None:
    old = await publish(registry, _returns("old"))
    blockers = [await _blocked(registry, runner) for _ in range(2)]
    accepted = await runner.start("hello@1.0.0")
    new = await publish(registry, _returns("new"))
    assert old != new
    later = await runner.start("hello@latest")
    pinned = await runner.start(f"hello@{old}")
    for blocker in blockers:
        await runner.request("POST", f"/runs/{blocker}/cancel")
    results = {run.id: (await runner.finished(run.id)).result for run in (accepted, later, pinned)}
    assert results == {accepted.id: "old", later.id: "new", pinned.id: "old"}
    assert (accepted.digest, later.digest, pinned.digest) == (old, new, old)


async def test_a_deprecated_version_runs_only_by_its_digest(registry: RunningRegistry, runner: RunningRunner) -> None:
    digest = await publish(registry, node("export const handler = () => 'old'", slug="worn"), "worn")
    answer = await registry.request(
        "PATCH", "/job-bundles/worn/versions/1.0.0", json={"status": "deprecated", "reason": "leaks"}
    )
    assert answer.status == 200, answer.body
    for reference in ("worn@1.0.0", "worn@latest"):
        refused = await runner.request("POST", "/runs", json={"bundle": reference})
        assert refused.status in (409, 422), refused.body
    refused = await runner.request("POST", "/runs", json={"bundle": "worn@1.0.0"})
    assert refused.status == 409
    assert "worn@1.0.0 was deprecated by “admin” at " in refused.json["detail"]
    assert "New runs of it are refused" in refused.json["detail"]
    assert digest in refused.json["detail"]
    assert (await runner.run(f"worn@{digest}")).result == "old"


_REFUSED = {
    "neither bundle nor job": ({}, 400, "either a bundle"),
    "both": ({"bundle": "hello@latest", "job": "j"}, 400, "not both"),
    "no version": ({"bundle": "hello"}, 400, "does not say which version"),
    "not a slug": ({"bundle": "He llo@latest"}, 400, "is not a slug"),
    "not a version": ({"bundle": "hello@one"}, 400, "is not a semantic version"),
    "not a digest": ({"bundle": "hello@sha256:12"}, 400, "is not a digest"),
    "unknown bundle": ({"bundle": "nothing@latest"}, 422, "nothing"),
    "unknown version": ({"bundle": "hello@9.9.9"}, 422, "9.9.9"),
    "unknown digest": ({"bundle": "hello@sha256:" + "0" * 64}, 422, "0000"),
    "unknown job": ({"job": "nothing"}, 422, "nothing"),
    "unknown field": ({"bundle": "hello@latest", "pirority": 1}, 400, "pirority"),
    "no time": ({"bundle": "hello@latest", "timeoutSeconds": 0}, 400, "timeoutSeconds"),
    "parameters are no object": ({"bundle": "hello@latest", "parameters": [1]}, 400, "parameters"),
    "NUL": ({"bundle": "hello@latest", "parameters": {"a": "\0"}}, 400, "NUL"),
    "half a pair": ({"bundle": "hello@latest", "parameters": {"a": "\ud800"}}, 400, ""),
    "too large": ({"bundle": "hello@latest", "parameters": {"a": "x" * 300_000}}, 413, "Pass large data as inputs"),
    "input with a bad name": (
        {"bundle": "hello@latest", "inputs": {"../a": {"run": "run_1", "path": "a"}}},
        400,
        "can't be the name of an input",
    ),
    "input of a step": ({"bundle": "hello@latest", "inputs": {"a": {"step": "s", "path": "a"}}}, 400, "for workflows"),
    "input of nothing": ({"bundle": "hello@latest", "inputs": {"a": {"path": "a"}}}, 400, "must name the run"),
}


@pytest.mark.parametrize("what", _REFUSED)
async def test_a_request_that_makes_no_sense_is_refused_and_leaves_nothing(
    registry: RunningRegistry, runner: RunningRunner, what: str
) -> None:
    await publish(registry, node(_ECHO))
    before = await runner.backend.fetch("SELECT count(*) AS n FROM runner.runs")
    body, status, text = _REFUSED[what]
    answer = await runner.request("POST", "/runs", data=json.dumps(body), headers={"Content-Type": "application/json"})
    assert (answer.status, text in answer.json["detail"]) == (status, True), answer.body
    assert await runner.backend.fetch("SELECT count(*) AS n FROM runner.runs") == before


async def test_a_job_gives_bundle_defaults_and_limits(registry: RunningRegistry, runner: RunningRunner) -> None:
    await publish(registry, node(_ECHO))
    definition = JobDefinition(
        bundle="hello@latest",
        parameters={"a": 1, "b": {"c": 2}},
        limits=Limits(timeout_seconds=7),
        retry=RetryPolicy(attempts=5),
    )
    await registry.client.put_job("nightly", definition)
    run = await runner.client.start_run(RunRequest(job="nightly", parameters={"b": 3}))
    done = await runner.finished(run.id)
    assert (done.job, done.result) == ("nightly", {"a": 1, "b": 3})
    (row,) = await runner.backend.fetch("SELECT limits, max_attempts FROM runner.runs WHERE id = $1", run.id)
    assert (json.loads(row["limits"])["timeoutSeconds"], row["max_attempts"]) == (7, 5)
    own = await runner.client.start_run(RunRequest(job="nightly", timeout_seconds=2))
    (row,) = await runner.backend.fetch("SELECT limits FROM runner.runs WHERE id = $1", own.id)
    assert json.loads(row["limits"])["timeoutSeconds"] == 2
    await runner.finished(own.id)
    await registry.client.put_job("nightly", JobDefinition(bundle="hello@latest"))
    assert (await runner.client.run(run.id)).parameters == {"a": 1, "b": 3}


async def test_runs_are_listed_by_page_and_by_filter(registry: RunningRegistry, runner: RunningRunner) -> None:
    await publish(registry, node(_ECHO, slug="listed"), "listed")
    made = [(await runner.run("listed@latest")).id for _ in range(5)]
    found: list[str] = []
    cursor = ""
    while True:
        page = (await runner.request("GET", f"/runs?bundle=listed&limit=2{cursor}")).json
        found += [item["id"] for item in page["items"]]
        if page["next"] is None:
            break
        cursor = f"&cursor={page['next']}"
    assert found == sorted(made, reverse=True)
    page = (await runner.request("GET", "/runs?bundle=listed&state=failed")).json
    assert page == {"items": [], "next": None}
    assert (await runner.request("GET", "/runs?state=odd")).status == 400
    assert (await runner.request("GET", "/runs?cursor=odd")).status == 400
    assert (await runner.request("GET", "/runs?limit=501")).status == 400
    assert (await runner.request("GET", "/runs/run_none")).status == 404


@pytest.mark.parametrize(
    ("method", "path", "scope"),
    [
        ("POST", "/runs", "runs:write"),
        ("GET", "/runs", "runs:read"),
        ("GET", "/runs/run_1", "runs:read"),
        ("POST", "/runs/run_1/cancel", "runs:write"),
        ("GET", "/runs/run_1/log", "runs:read"),
        ("GET", "/runs/run_1/attempts", "runs:read"),
        ("GET", "/runs/run_1/outputs", "runs:read"),
        ("GET", "/runs/run_1/outputs/a", "runs:read"),
        ("POST", "/workflows/w/runs", "runs:write"),
        ("GET", "/workflow-runs", "runs:read"),
        ("GET", "/workflow-runs/wfr_1", "runs:read"),
        ("POST", "/workflow-runs/wfr_1/cancel", "runs:write"),
    ],
)
async def test_every_route_wants_a_token_with_its_scope(
    registry: RunningRegistry, runner: RunningRunner, method: str, path: str, scope: str
) -> None:
    assert (await runner.request(method, path, token=None)).status == 401
    assert (await runner.request(method, path, token="stw_wrong")).status == 401
    other = await registry.token_for("bob", "runs:read" if scope == "runs:write" else "runs:write")
    refused = await runner.request(method, path, token=other)
    assert (refused.status, refused.json["requiredScope"]) == (403, scope)
    own = await registry.token_for("bob", scope)
    assert (await runner.request(method, path, token=own)).status in (200, 400, 404)


async def test_who_asked_is_known_afterwards(registry: RunningRegistry, runner: RunningRunner) -> None:
    await publish(registry, node(_ECHO))
    token = await registry.token_for("carol", "runs:write", "runs:read")
    answer = await runner.request("POST", "/runs", json={"bundle": "hello@latest"}, token=token)
    run = await runner.finished(answer.json["id"])
    assert run.created_by == "carol"
    assert {event["actor"] for event in await runner.audit(f"run/{run.id}")} == {"carol"}


async def test_health_is_told_to_anybody(runner: RunningRunner) -> None:
    assert (await runner.request("GET", "/livez", token=None)).json == {"status": "ok"}
    ready = (await runner.request("GET", "/readyz", token=None)).json
    assert ready == {"status": "ok", "checks": {"database": "ok", "bucket": "ok", "queue": "ok"}}


async def test_twenty_runs_asked_for_at_once_all_run(registry: RunningRegistry, runner: RunningRunner) -> None:
    await publish(registry, node(_ECHO))
    started = await asyncio.gather(*(runner.start(parameters={"n": number}) for number in range(20)))
    done = await asyncio.gather(*(runner.finished(run.id) for run in started))
    assert [run.state for run in done] == [RunState.SUCCEEDED] * 20
    assert [run.result["n"] for run in done] == list(range(20))
    assert len({run.id for run in done}) == 20


async def _blocked(registry: RunningRegistry, runner: RunningRunner) -> str:
    body = node("export const handler = () => new Promise((go) => setTimeout(go, 60000))", slug="blocker")
    await publish(registry, body, "blocker")
    run = await runner.start("blocker@latest")
    await runner.in_state(run.id, "running")
    return run.id
