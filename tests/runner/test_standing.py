"""Yanked and quarantined versions: what is refused, what goes on, and what a runner learns too late."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from libs.common.client import RegistryClient
from libs.common.errors import Unavailable
from libs.common.models import JobDefinition, QueueLimits, RunRequest, RunState, StepDefinition, WorkflowDefinition
from services.runner.endings import RunFailed
from services.runner.standing import Standing
from tests.backend import Backend
from tests.ports import free_port
from tests.registry.running import Answer, RunningRegistry, running_registry
from tests.runner.bundles import node, publish
from tests.runner.running import OPEN, RunningRunner, running_runner

RUNNER_SETTINGS = {**OPEN, "quarantine_seconds": 0}

_RAN = "export const handler = () => 'ran'"


async def _set(registry: RunningRegistry, slug: str, status: str, reason: str = "it steals tokens") -> None:
    path = f"/job-bundles/{slug}/versions/1.0.0"
    answer = await registry.request("PATCH", path, json={"status": status, "reason": reason})
    assert answer.status == 200, answer.body


async def _ask(runner: RunningRunner, **body: Any) -> Answer:
    return await runner.request("POST", "/runs", json=body)


async def _define(registry: RunningRegistry, slug: str, **more: Any) -> None:
    await registry.client.put_job(slug, JobDefinition(bundle=f"{slug}@1.0.0", **more))
    await registry.client.put_workflow(slug, WorkflowDefinition(steps=[StepDefinition(name="only", job=slug)]))


async def test_a_yanked_version_runs_only_where_who_asks_insists(
    registry: RunningRegistry, runner: RunningRunner
) -> None:
    digest = await publish(registry, node(_RAN, slug="pulled"), "pulled")
    await _define(registry, "pulled")
    await _set(registry, "pulled", "yanked", "it deletes its input")
    for body in ({"bundle": "pulled@1.0.0"}, {"bundle": f"pulled@{digest}"}, {"job": "pulled"}):
        refused = await _ask(runner, **body)
        assert (refused.status, refused.json["type"]) == (409, "urn:stowage:problem:version-yanked"), body
        assert "pulled@1.0.0 was yanked by “admin” at " in refused.json["detail"]
        assert "“it deletes its input”" in refused.json["detail"]
        assert "Choose another version, or say allowYanked: true" in refused.json["detail"]
        assert (refused.json["digest"], refused.json["statusBy"]) == (digest, "admin")
    refused = await runner.request("POST", "/workflows/pulled/runs", json={})
    assert (refused.status, refused.json["type"]) == (409, "urn:stowage:problem:version-yanked")
    assert (await _ask(runner, bundle="pulled@latest")).status == 422

    for body in ({"bundle": "pulled@1.0.0"}, {"bundle": f"pulled@{digest}"}, {"job": "pulled"}):
        accepted = await _ask(runner, **body, allowYanked=True)
        assert accepted.status == 202, accepted.body
        assert (await runner.finished(accepted.json["id"])).result == "ran"
    await _define(registry, "pulled", allow_yanked=True)
    assert (await _ask(runner, job="pulled")).status == 202
    workflow = await runner.client.start_workflow("pulled", {})
    assert (await runner.workflow_finished(workflow.id)).state == "succeeded"


async def test_a_quarantined_version_is_never_run(registry: RunningRegistry, runner: RunningRunner) -> None:
    digest = await publish(registry, node(_RAN, slug="sick"), "sick")
    replaced = await publish(registry, node("export const handler = () => 'mended'", slug="sick"), "sick")
    await _define(registry, "sick", allow_yanked=True)
    await _set(registry, "sick", "quarantined")
    for body in (
        {"bundle": "sick@1.0.0"},
        *({"bundle": f"sick@{each}"} for each in (digest, replaced)),
        {"job": "sick"},
    ):
        refused = await _ask(runner, **body, allowYanked=True)
        assert (refused.status, refused.json["type"]) == (409, "urn:stowage:problem:version-quarantined"), body
        assert "sick@1.0.0 was quarantined by “admin” at " in refused.json["detail"]
        assert "until an administrator releases it" in refused.json["detail"]
    assert (await runner.request("POST", "/workflows/sick/runs", json={})).status == 409
    await _set(registry, "sick", "active", "a false alarm")
    assert (await runner.run(f"sick@{digest}")).result == "ran"


async def test_a_run_that_waits_is_not_begun_when_its_version_is_quarantined(
    registry: RunningRegistry, runner: RunningRunner, tmp_path: Path
) -> None:
    marker = tmp_path / "marker"
    code = f"import fs from 'node:fs'; export const handler = () => fs.writeFileSync({str(marker)!r}, 'ran')"
    await publish(registry, node(code, slug="late"), "late")
    async with _held_up(registry, runner, tmp_path) as (first, job):
        steps = [StepDefinition(name="first", job=job), StepDefinition(name="late", job="late", depends_on=["first"])]
        await registry.client.put_job("late", JobDefinition(bundle="late@1.0.0"))
        await registry.client.put_workflow("late", WorkflowDefinition(steps=steps))
        workflow = await runner.client.start_workflow("late", {})
        assert (await runner.client.run(first)).state is RunState.RUNNING
        await _set(registry, "late", "quarantined")
    ended = await runner.workflow_finished(workflow.id)
    step = next(step for step in ended.steps if step.name == "late")
    assert (ended.state, step.state) == ("failed", "failed")
    assert step.run_id is not None
    run = await runner.client.run(step.run_id)
    assert run.error is not None
    assert (run.error.type, run.attempts) == ("version_quarantined", 1)
    assert "late@1.0.0 was quarantined by “admin” at " in run.error.message
    assert "That was after the run was accepted; nothing was executed." in run.error.message
    assert run.timings.first_byte_ms is None
    assert not marker.exists()


async def test_a_run_that_waits_is_executed_when_its_version_is_yanked_or_the_registry_does_not_say(
    own: Backend, tmp_path: Path
) -> None:
    async with (
        running_registry(own, token_cache_seconds=0) as registry,
        running_runner(own, registry, tmp_path / "scratch", **RUNNER_SETTINGS) as runner,
    ):
        await publish(registry, node(_RAN))
        async with _held_up(registry, runner, tmp_path) as (_first, job):
            await _set(registry, job, "yanked", "superseded")
            waiting = await runner.client.start_run(RunRequest(job=job, allow_yanked=True))
            await own.fetch("UPDATE registry.tokens SET revoked_at = now() WHERE subject = 'runner'")
        async with asyncio.timeout(30):
            ended = "SELECT FROM runner.runs WHERE id = $1 AND finished_at IS NOT NULL"
            while not await own.fetch(ended, waiting.id):  # noqa: ASYNC110
                await asyncio.sleep(0.05)
        await own.fetch("UPDATE registry.tokens SET revoked_at = NULL WHERE subject = 'runner'")
        assert (await runner.finished(waiting.id)).state is RunState.SUCCEEDED
        assert f"the registry did not say whether {job}@1.0.0 is quarantined" in await runner.log(waiting.id)


async def test_that_a_version_is_fine_is_remembered_for_as_long_as_is_set(registry: RunningRegistry) -> None:
    digest = await publish(registry, node(_RAN, slug="known"), "known")
    long, none = Standing(registry.client, seconds=3600), Standing(registry.client, seconds=0)
    for standing in (long, none):
        await standing.resolve("known", "latest")
    await _set(registry, "known", "quarantined")
    await long.require_released("known", digest)
    with pytest.raises(RunFailed, match=r"known@1\.0\.0 was quarantined by “admin”"):
        await none.require_released("known", digest)
    await _set(registry, "known", "active")
    await none.require_released("known", digest)


async def test_a_registry_that_can_not_be_asked_is_not_asked_by_every_run() -> None:
    async with RegistryClient(f"http://127.0.0.1:{free_port()}", "none") as nobody:
        standing = Standing(nobody, seconds=3600)
        with pytest.raises(Unavailable, match="can't be reached"):
            await standing.require_released("hello", "sha256:0")
        with pytest.raises(Unavailable, match="a moment ago"):
            await standing.require_released("other", "sha256:1")


@asynccontextmanager
async def _held_up(registry: RunningRegistry, runner: RunningRunner, tmp_path: Path) -> AsyncIterator[tuple[str, str]]:
    """A run that goes on until the context ends, and its job, of which one run goes at a time."""
    gate = tmp_path / "gate"
    code = f"""
        import fs from 'node:fs';
        export const handler = async () => {{
          while (!fs.existsSync({str(gate)!r})) await new Promise((go) => setTimeout(go, 20));
        }};
    """
    await publish(registry, node(code, slug="gate"), "gate")
    await registry.client.put_job("gate", JobDefinition(bundle="gate@1.0.0", queue=QueueLimits(max_running=1)))
    run = await runner.client.start_run(RunRequest(job="gate"))
    await runner.in_state(run.id, "running")
    try:
        yield run.id, "gate"
    finally:
        gate.touch()
