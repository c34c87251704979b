"""What is kept for the sake of runs, for how long, and what its readers are told when it is gone."""

import asyncio
import contextlib
import os
import sys
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path

import pytest

from libs.common.audit import Origin
from libs.common.client import RegistryClient, ServiceError
from libs.common.database import Pool, open_pool
from libs.common.models import InputSource, Run, RunState
from libs.common.retention import Expired, Expiry
from services.registry.store.collection import Retention
from services.runner.retention import expiry_of_runs, tell_uses
from tests.registry.running import RunningRegistry, make_token
from tests.registry.test_gc import collect, pass_time, present
from tests.runner.bundles import publish, python
from tests.runner.running import OPEN, RunningRunner

RUNNER_SETTINGS = OPEN

_WRITER = python("""
    from pathlib import Path
    def handler(context):
        print('hello')
        (Path(context.output_dir) / 'plots').mkdir()
        (Path(context.output_dir) / 'plots' / 'a.svg').write_text('<svg/>')
""")
_WAITER = """
    import time
    from pathlib import Path
    def handler(context):
        while not Path(context.parameters['until']).exists():
            time.sleep(0.02)
        return {name: Path(path).read_text() for name, path in context.inputs.items()}
"""


@contextlib.asynccontextmanager
async def pool_of(runner: RunningRunner) -> AsyncIterator[Pool]:
    async with open_pool(runner.backend.database_url, size=4, application_name="test") as pool:
        yield pool


@contextlib.asynccontextmanager
async def expiry(runner: RunningRunner, days: float = 30) -> AsyncIterator[Expiry]:
    objects = runner.backend.objects()
    try:
        async with pool_of(runner) as pool:
            yield expiry_of_runs(pool, objects, days)
    finally:
        objects.close()


async def expire(runner: RunningRunner) -> Expired:
    async with expiry(runner) as expiring:
        return await expiring.expire(Origin(actor="somebody"))


async def written(registry: RunningRegistry, runner: RunningRunner, *, days_ago: int) -> Run:
    """A run with a log and an output that ended so long ago."""
    await publish(registry, _WRITER)
    run = await runner.run()
    assert run.state is RunState.SUCCEEDED, run.error
    await runner.backend.fetch(
        "UPDATE runner.runs SET finished_at = finished_at - $2::interval WHERE id = $1",
        run.id,
        timedelta(days=days_ago),
    )
    return run


def objects_of(runner: RunningRunner, run: Run) -> int:
    return len(runner.backend.keys(f"outputs/{run.id}/") + runner.backend.keys(f"logs/runs/{run.id}/"))


async def test_log_and_outputs_go_when_they_were_kept_long_enough_and_the_run_stays(
    registry: RunningRegistry, runner: RunningRunner
) -> None:
    old, young = [await written(registry, runner, days_ago=days) for days in (31, 29)]
    async with expiry(runner) as expiring:
        planned = await expiring.expire(Origin(actor="somebody"), dry_run=True)
        assert (planned.owners, planned.objects, objects_of(runner, old)) == (1, 2, 2)
        done = await expiring.expire(Origin(actor="somebody"))
        assert done == planned
        assert (await expiring.expire(Origin(actor="somebody"))).owners == 0
    assert (objects_of(runner, old), objects_of(runner, young)) == (0, 2)
    shown = await runner.client.run(old.id)
    assert (shown.state, shown.expired_at is not None) == (RunState.SUCCEEDED, True)
    assert [output.path for output in await runner.client.outputs(old.id)] == ["plots/a.svg"]
    for path in ("log", "outputs/plots/a.svg"):
        gone = await runner.request("GET", f"/runs/{old.id}/{path}")
        assert (gone.status, gone.json["type"]) == (410, "urn:stowage:problem:expired")
    assert "hello" in await runner.log(young.id)
    assert await runner.client.output(young.id, "plots/a.svg") == b"<svg/>"
    (event,) = await runner.backend.fetch("SELECT actor, reason FROM audit.events WHERE action = 'gc.finished'")
    assert dict(event) == {"actor": "somebody", "reason": "keep logs and outputs of runs for 30 days"}


async def test_outputs_that_an_open_run_needs_are_kept(
    registry: RunningRegistry, runner: RunningRunner, tmp_path: Path
) -> None:
    old = await written(registry, runner, days_ago=31)
    source = InputSource(run=old.id, path="plots/a.svg")
    until = tmp_path / "go on"
    await publish(registry, python(_WAITER, slug="waiter"), "waiter")
    reader = await runner.start("waiter@latest", inputs={"plot": source}, parameters={"until": str(until)})
    assert (await expire(runner)).owners == 0
    until.touch()
    assert (await runner.finished(reader.id)).result == {"plot": "<svg/>"}
    assert (await expire(runner)).owners == 1
    late = await runner.run("waiter@latest", inputs={"plot": source}, parameters={"until": str(until)})
    assert late.error is not None
    assert late.error.type == "input_missing"


async def test_artifact_of_an_open_run_is_not_collected(
    registry: RunningRegistry, runner: RunningRunner, tmp_path: Path
) -> None:
    policy = Retention(keep_revisions=1, keep_used_days=90, grace_seconds=0)
    until = tmp_path / "go on"
    digest = await publish(registry, python(_WAITER))
    run = await runner.start(parameters={"until": str(until)})
    await publish(registry, _WRITER)
    await pass_time(registry, "100 days")
    token = await make_token(runner.backend, "runner", "bundles:read")
    async with pool_of(runner) as pool, RegistryClient(registry.url, token) as client:
        await tell_uses(pool, client)
    assert digest not in {item.digest for item in (await collect(registry, policy)).artifacts}
    assert digest in present(registry)
    until.touch()
    await runner.finished(run.id)
    await pass_time(registry, "100 days")
    assert digest in {item.digest for item in (await collect(registry, policy)).artifacts}
    with pytest.raises(ServiceError, match="was collected at") as refused:
        await runner.start(f"hello@{digest}")
    assert (refused.value.status, refused.value.kind) == (422, "artifact-collected")


async def test_command_removes_only_where_a_retention_is_set(registry: RunningRegistry, runner: RunningRunner) -> None:
    old = await written(registry, runner, days_ago=31)
    for days, kept, said in ((None, 2, "is not set"), ("30", 0, "older than 30 days")):
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            *("-m", "services.runner", "gc"),
            env={
                **runner.backend.environment("STOWAGE_RUNNER_"),
                "STOWAGE_RUNNER_REGISTRY_URL": registry.url,
                "STOWAGE_RUNNER_SERVICE_TOKEN": "none",
                **({"STOWAGE_RUNNER_RETENTION_DAYS": days} if days else {}),
                "PATH": os.environ["PATH"],
            },
            stdout=asyncio.subprocess.PIPE,
        )
        out, _ = await process.communicate()
        assert process.returncode == 0
        assert said in out.decode()
        assert objects_of(runner, old) == kept
