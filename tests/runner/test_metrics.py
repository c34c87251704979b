"""What the runner measures of runs, of the queue and of its event loop."""

import asyncio
from collections.abc import Callable
from pathlib import Path

from libs.common.models import RunState
from tests.backend import Backend
from tests.metrics import Reading, scrape
from tests.registry.running import RunningRegistry, running_registry
from tests.runner.bundles import node, publish, python
from tests.runner.running import RunningRunner, running_runner

_PHASES = ("queued", "first_byte", "fetch", "start", "handler", "upload", "remove")
_LAG = "stowage_event_loop_lag_seconds"

_TALKATIVE = """
    import fs from 'node:fs';
    export function handler(context) {
      for (let n = 0; n < 5000; n++) console.log('line ' + n + ' ' + 'x'.repeat(100));
      for (let n = 0; n < 2000; n++) context.logger.info('event ' + n, { n });
      fs.writeFileSync(context.outputDir + '/out.txt', 'done');
      return { text: 'r'.repeat(500000) };
    }
"""
_SLEEPING = "import time\ndef handler(context):\n    time.sleep(600)\n"


async def _until(runner: RunningRunner, wanted: Callable[[Reading], bool]) -> Reading:
    async with asyncio.timeout(30):
        while not wanted(reading := await scrape(runner.session, runner.url)):  # noqa: ASYNC110
            await asyncio.sleep(0.05)
    return reading


async def test_load_is_measured_by_phase_and_the_loop_is_watched_meanwhile(
    runner: RunningRunner, registry: RunningRegistry
) -> None:
    files = {f"lib/part-{number}.txt": str(number) * 2000 for number in range(1500)}
    body = node(_TALKATIVE, slug="talkative", files=files)
    await publish(registry, body, "talkative")
    await publish(registry, python("def handler(context): return 1", slug="brief"), "brief")
    before = await scrape(runner.session, runner.url)
    bundles = ["talkative@latest", "brief@latest"] * 3
    runs = await asyncio.gather(*(runner.run(bundle) for bundle in bundles))
    assert {run.state for run in runs} == {RunState.SUCCEEDED}
    after = await _until(runner, lambda reading: reading.value("stowage_runs_executing") == 0)

    def grown(name: str, **labels: str) -> float:
        return after.value(name, labels) - before.value(name, labels)

    counts = {phase: after.value("stowage_run_phase_seconds_count", {"phase": phase}) for phase in _PHASES}
    assert set(counts.values()) == {6}
    assert grown("stowage_runs_finished_total", state="succeeded") == 6
    assert grown("stowage_run_fetched_bytes_total") >= 3 * len(body)
    assert grown(f"{_LAG}_count") > 0
    buckets = after.buckets(_LAG)
    assert buckets == sorted(buckets)
    assert buckets[-1] == after.value(f"{_LAG}_count")
    assert "talkative" not in after.text


async def test_each_run_says_what_its_phases_took(runner: RunningRunner, registry: RunningRegistry) -> None:
    await publish(registry, python("def handler(context): return 1", slug="brief"), "brief")
    timings = (await runner.run("brief@latest")).timings.model_dump(by_alias=True)
    assert list(timings) == ["queuedMs", "firstByteMs", "fetchMs", "startMs", "handlerMs", "uploadMs", "removeMs"]
    assert None not in timings.values()
    assert timings["firstByteMs"] <= timings["fetchMs"]


async def test_phases_that_a_run_did_not_reach_are_left_out(runner: RunningRunner, registry: RunningRegistry) -> None:
    await publish(registry, python("raise RuntimeError", slug="broken"), "broken")
    timings = (await runner.run("broken@latest")).timings
    assert (timings.handler_ms, timings.upload_ms) == (None, None)
    assert None not in (timings.first_byte_ms, timings.fetch_ms, timings.remove_ms)


async def test_queue_cancels_and_lost_leases_are_counted(backend: Backend, tmp_path: Path) -> None:
    async with running_registry(backend) as registry:
        await publish(registry, python(_SLEEPING, slug="sleeping"), "sleeping")
        async with running_runner(backend, registry, tmp_path / "scratch") as runner:
            held = [await runner.start("sleeping@latest") for _ in range(2)]
            for run in held:
                await runner.in_state(run.id, "running")
            waiting = await runner.start("sleeping@latest")
            reading = await _until(runner, lambda reading: reading.value("stowage_runs_queued") == 1)
            assert reading.value("stowage_runs_executing") == 2
            assert (await runner.request("POST", f"/runs/{waiting.id}/cancel")).status == 202
            await _until(runner, lambda reading: reading.value("stowage_runs_queued") == 0)
            assert (await runner.request("POST", f"/runs/{held[0].id}/cancel")).status == 202
            await runner.finished(held[0].id)
            cancelled = {"state": "cancelled"}
            await _until(runner, lambda reading: reading.value("stowage_runs_finished_total", cancelled) == 2)
            await backend.fetch("UPDATE runner.runs SET lease = gen_random_uuid() WHERE id = $1", held[1].id)
            await _until(runner, lambda reading: reading.value("stowage_run_leases_lost_total") == 1)
