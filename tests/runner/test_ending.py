"""Timeouts, cancels, and what a job leaves running: whatever happens, nothing of it goes on."""

import asyncio
import os
import time
from pathlib import Path

import pytest

from libs.common.models import RunState
from tests.registry.running import RunningRegistry
from tests.runner.bundles import node, publish, python
from tests.runner.running import OPEN, RunningRunner, alive

RUNNER_SETTINGS = OPEN  # jobs leave marks for the tests

_STUBBORN_NODE = node("""
    import { spawn } from 'node:child_process';
    export function handler(context) {
      const child = spawn('/bin/sh', ['-c', 'trap "" TERM; while true; do sleep 0.2; done'], { stdio: 'inherit' });
      context.logger(`pid ${process.pid} child ${child.pid}`);
      process.on('SIGTERM', () => console.log('no'));
      return new Promise(() => setInterval(() => {}, 1000));
    }
""")
_BUSY_PYTHON = python("""
    import os, signal, subprocess
    def handler(context):
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        child = subprocess.Popen(['/bin/sh', '-c', 'trap "" TERM; while true; do sleep 0.2; done'])
        context.logger(f'pid {os.getpid()} child {child.pid}')
        while True:
            pass
""")


@pytest.mark.parametrize("body", [_STUBBORN_NODE, _BUSY_PYTHON], ids=["node", "python"])
async def test_a_job_that_takes_too_long_is_ended_with_its_whole_group(
    registry: RunningRegistry, runner: RunningRunner, body: bytes
) -> None:
    await publish(registry, body)
    begun = time.monotonic()
    run = await runner.run(timeoutSeconds=1)
    assert run.state is RunState.TIMED_OUT
    assert run.error is not None
    assert "took longer than 1 seconds, which is its limit" in run.error.message
    assert time.monotonic() - begun < 10
    assert alive(await _pids(runner, run.id)) == []


@pytest.mark.parametrize("body", [_STUBBORN_NODE, _BUSY_PYTHON], ids=["node", "python"])
async def test_cancelling_a_running_job_ends_its_whole_group(
    registry: RunningRegistry, runner: RunningRunner, body: bytes
) -> None:
    await publish(registry, body)
    run = await runner.start()
    await runner.logged(run.id, "child")
    answer = await runner.request("POST", f"/runs/{run.id}/cancel")
    assert answer.status == 202
    run = await runner.finished(run.id)
    assert run.state is RunState.CANCELLED
    assert run.error is not None
    assert run.error.message == "The run was cancelled."
    assert alive(await _pids(runner, run.id)) == []
    assert [event["action"] for event in await runner.audit(f"run/{run.id}")] == [
        "run.accepted",
        "run.cancel_requested",
        "run.finished",
    ]


async def test_a_job_is_asked_before_it_is_ended(registry: RunningRegistry, runner: RunningRunner) -> None:
    bodies = [
        node("""
            export async function handler(context) {
              context.logger('waiting');
              const work = setInterval(() => {}, 1000);
              await new Promise((go) => context.signal.addEventListener('abort', go));
              clearInterval(work);
              context.logger(`asked: ${context.signal.reason.message}`);
              return 'too late';
            }
        """),
        python("""
            def handler(context):
                context.logger('waiting')
                assert context.signal.wait(30) and context.signal.aborted
                context.logger(f'asked: {context.signal.reason}')
                return 'too late'
        """),
    ]
    for body in bodies:
        await publish(registry, body)
        run = await runner.start()
        await runner.logged(run.id, "waiting")
        await runner.request("POST", f"/runs/{run.id}/cancel")
        run = await runner.finished(run.id)
        assert (run.state, run.result) == (RunState.CANCELLED, None)
        assert "asked: the run was cancelled" in await runner.log(run.id)


async def test_cancelling_a_queued_run_ends_it_at_once(registry: RunningRegistry, runner: RunningRunner) -> None:
    await publish(registry, node("export const handler = () => new Promise((go) => setTimeout(go, 60000))"))
    holders = [await runner.start() for _ in range(2)]
    for holder in holders:
        await runner.in_state(holder.id, "running")
    queued = await runner.start()
    answer = await runner.request("POST", f"/runs/{queued.id}/cancel")
    assert (answer.status, answer.json["state"]) == (202, "cancelled")
    assert answer.json["error"]["message"] == "The run was cancelled before it started."
    again = await runner.request("POST", f"/runs/{queued.id}/cancel")
    assert (again.status, again.json["state"]) == (202, "cancelled")
    for holder in holders:
        await runner.request("POST", f"/runs/{holder.id}/cancel")
        assert (await runner.finished(holder.id)).state is RunState.CANCELLED
    assert (await runner.client.run(queued.id)).attempts == 0
    assert await runner.log(queued.id) == ""


async def test_a_run_that_has_ended_cannot_be_cancelled(registry: RunningRegistry, runner: RunningRunner) -> None:
    await publish(registry, node("export const handler = () => 1"))
    run = await runner.run()
    answer = await runner.request("POST", f"/runs/{run.id}/cancel")
    assert (answer.status, answer.json["detail"]) == (409, f"run {run.id} has already ended: it is succeeded.")
    assert (await runner.request("POST", "/runs/run_none/cancel")).status == 404


@pytest.mark.parametrize("language", ["node", "python"])
async def test_what_a_job_leaves_behind_dies_with_it_and_keeps_nothing_waiting(
    registry: RunningRegistry, runner: RunningRunner, language: str
) -> None:
    """Children that hold the pipes open, in the group, in a session of their own, and forked twice."""
    bodies = {
        "node": node("""
            import { spawn } from 'node:child_process';
            export function handler(context) {
              const one = spawn('sleep', ['600'], { stdio: 'inherit' });
              const two = spawn('sleep', ['600'], { stdio: 'inherit', detached: true });
              spawn('/bin/sh', ['-c', 'setsid sleep 600 & echo third $!'], { stdio: 'inherit' });
              two.unref();
              return new Promise((go) => setTimeout(() => go([one.pid, two.pid]), 300));
            }
        """),
        "python": python("""
            import os, subprocess, time
            def handler(context):
                pids = [subprocess.Popen(['sleep', '600'], start_new_session=own).pid for own in (False, True)]
                read, write = os.pipe()
                if os.fork() == 0:
                    os.setsid()
                    if os.fork() == 0:
                        os.write(write, str(os.getpid()).encode())
                        time.sleep(600)
                    os._exit(0)
                return [*pids, int(os.read(read, 10))]
        """),
    }
    await publish(registry, bodies[language])
    begun = time.monotonic()
    run = await runner.run()
    assert run.state is RunState.SUCCEEDED, run.error
    assert time.monotonic() - begun < 8
    assert alive(run.result) == []
    assert _processes_of(run.id) == []


async def test_many_cancels_and_ends_at_once_leave_each_run_with_one_end(
    registry: RunningRegistry, runner: RunningRunner
) -> None:
    await publish(
        registry, node("export const handler = () => new Promise((go) => setTimeout(go, 50 * Math.random()))")
    )
    runs = [await runner.start() for _ in range(12)]

    async def cancel(run_id: str, delay: float) -> None:
        await asyncio.sleep(delay)
        await asyncio.gather(*(runner.request("POST", f"/runs/{run_id}/cancel") for _ in range(3)))

    await asyncio.gather(*(cancel(run.id, 0.15 * number) for number, run in enumerate(runs)))
    for run in runs:
        ended = await runner.finished(run.id)
        assert ended.state in (RunState.SUCCEEDED, RunState.CANCELLED)
        actions = [event["action"] for event in await runner.audit(f"run/{run.id}")]
        assert actions.count("run.finished") == 1


async def _pids(runner: RunningRunner, run_id: str) -> list[int]:
    line = next(line for line in (await runner.log(run_id)).splitlines() if "child" in line)
    words = line.split()
    return [int(words[words.index("pid") + 1]), int(words[words.index("child") + 1])]


def _processes_of(run_id: str) -> list[int]:
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                environment = (entry / "environ").read_bytes()
            except OSError:
                continue
            if run_id.encode() in environment:
                found.append(int(entry.name))
    return found
