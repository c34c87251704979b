"""Runners that sleep longer than their lease and wake up again: they write nothing more, and disturb nobody."""

import asyncio
import contextlib
import hashlib
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from uuid import uuid4

import pytest

from libs.common.database import Notifications, open_pool
from libs.common.journal import Journal
from libs.common.models import Output, RunState
from libs.common.objects import output_key, run_log_prefix
from services.runner import output_store, store
from services.runner.lifecycle import Leased, Lifecycle
from services.runner.logs import RunLogs
from services.runner.store import JOURNAL_GUARD, Ending, Timings
from services.runner.turns import Turns
from tests.backend import Backend
from tests.registry.running import RunningRegistry, running_registry
from tests.runner.bundles import node, publish
from tests.runner.running import OPEN, RunnerProcess, RunningRunner, alive, runner_process, running_runner

_CODE = """
    import fs from 'node:fs';
    export async function handler({ parameters, run, logger, outputDir }) {
      logger(`attempt ${run.attempt} pid ${process.pid}`);
      for (let i = 0; i < (parameters.files ?? 3); i++) fs.writeFileSync(`${outputDir}/${i}.txt`, `of ${run.attempt}`);
      let waited = 0;
      while (run.attempt < (parameters.until ?? 1)) {
        await new Promise((go) => setTimeout(go, 50));
        if (++waited % 4 === 0) logger(`attempt ${run.attempt} still here`);
      }
      return run.attempt;
    }
"""


@pytest.fixture
async def own_registry(own: Backend) -> AsyncIterator[RunningRegistry]:
    """A registry on it, with a bundle that says which attempt it is."""
    async with running_registry(own) as registry:
        await publish(registry, node(_CODE))
        yield registry


async def test_a_runner_that_slept_while_its_job_ran_leaves_log_state_and_outputs_to_the_next(
    own: Backend, own_registry: RunningRegistry, tmp_path: Path
) -> None:
    async with _two(own, own_registry, tmp_path) as (sleeper, other):
        with _asleep(other):
            run = await sleeper.start(parameters={"until": 2})
            await sleeper.logged(run.id, "attempt 1 still here")
        pid = await _pid(sleeper, run.id)
        with _asleep(sleeper):
            done = await other.finished(run.id)
        log = await other.log(run.id)
        await _until(lambda: _gone(pid))
        assert (done.state, done.result, done.attempts) == (RunState.SUCCEEDED, 2, 2)
        await _until(lambda: _settled(own, run.id, 2))
        assert await other.log(run.id) == log
        assert log.index("attempt 2 of 3") > log.rindex("attempt 1 still here")
        await _assert_outputs(other, run.id, b"of 2", 3)
        actions = [event["action"] for event in await other.audit(f"run/{run.id}")]
        assert actions == ["run.accepted", "run.finished"]
        assert (await sleeper.run()).state is RunState.SUCCEEDED


async def test_a_runner_that_slept_while_it_uploaded_does_not_touch_what_the_next_has_uploaded(
    own: Backend, own_registry: RunningRegistry, tmp_path: Path
) -> None:
    async with _two(own, own_registry, tmp_path) as (sleeper, other):
        with _asleep(other):
            run = await sleeper.start(parameters={"files": 400})
            await _until(lambda: _has_keys(own, run.id, 1))
        with _asleep(sleeper):
            assert len(own.keys(f"outputs/{run.id}/1/")) < 400
            done = await other.finished(run.id)
            recorded = await other.client.outputs(run.id)
        assert (done.state, done.result) == (RunState.SUCCEEDED, 2)
        await _until(lambda: _settled(own, run.id, 2))
        assert await other.client.outputs(run.id) == recorded
        assert own.keys(f"outputs/{run.id}/") == sorted(output_key(run.id, 2, f"{n}.txt") for n in range(400))
        assert {output.digest for output in recorded} == {f"sha256:{hashlib.sha256(b'of 2').hexdigest()}"}


async def test_a_runner_that_wakes_up_leaves_the_entry_to_whoever_has_it(
    own: Backend, own_registry: RunningRegistry, tmp_path: Path
) -> None:
    async with _two(own, own_registry, tmp_path) as (sleeper, other):
        with _asleep(other):
            run = await sleeper.start(parameters={"until": 3})
            await sleeper.logged(run.id, "attempt 1 still here")
        pid = await _pid(sleeper, run.id)
        with _asleep(sleeper):
            await other.logged(run.id, "attempt 2 still here")
        await _until(lambda: _gone(pid))
        # The one that has it now dies in turn: the run is still in the queue, and the sleeper takes it.
        await other.kill()
        done = await sleeper.finished(run.id)
        assert (done.result, done.attempts) == (3, 3)
        assert await _empty(own, "runner.queue_pgqueuer")


async def test_outputs_of_a_runner_that_is_killed_while_it_uploads_are_swept(
    own: Backend, own_registry: RunningRegistry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.runner.app._TIDY_SECONDS", 0.5)
    monkeypatch.setattr("services.runner.uploads._SETTLED_SECONDS", 0.5)
    async with runner_process(own, own_registry, tmp_path / "a", lease_seconds=2, **OPEN) as first:
        run = await first.start(parameters={"files": 400})
        await _until(lambda: _has_keys(own, run.id, 1))
        await first.kill()
    async with running_runner(own, own_registry, tmp_path / "b", lease_seconds=2, **OPEN) as other:
        await other.finished(run.id)
        await _until(lambda: _settled(own, run.id, 2))
        await _assert_outputs(other, run.id, b"of 2", 400)
        await _until(lambda: _empty(own, "runner.uploads"))


async def test_what_a_runner_uploads_after_the_sweep_is_swept_again(
    own: Backend, own_registry: RunningRegistry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.runner.app._TIDY_SECONDS", 0.3)
    async with running_runner(own, own_registry, tmp_path / "scratch", **OPEN) as runner:
        done = await runner.run()
        await own.fetch("INSERT INTO runner.uploads (run_id, attempt, lease) VALUES ($1, 2, $2)", done.id, uuid4())
        objects = own.objects()
        for _ in range(2):  # as a runner that is paused between two files, and killed after the second one
            objects.put(output_key(done.id, 2, "late.txt"), b"late", content_type="text/plain")
            await _until(lambda: _settled(own, done.id, 1))
        objects.close()
        assert len(await runner.client.outputs(done.id)) == 3
        monkeypatch.setattr("services.runner.uploads._SETTLED_SECONDS", 0.5)
        await _until(lambda: _empty(own, "runner.uploads"))


async def test_a_log_that_was_archived_under_another_lease_is_swept_after_the_run_has_ended(
    own: Backend, own_registry: RunningRegistry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.runner.app._TIDY_SECONDS", 0.3)
    monkeypatch.setattr("services.runner.logs._SETTLED_SECONDS", 0.5)
    async with running_runner(own, own_registry, tmp_path / "scratch", **OPEN) as runner:
        done = await runner.run()
        log = await runner.log(done.id)
        # As a holder leaves it that is killed after it has archived the log, and before it could end the run.
        lease = uuid4()
        await own.fetch("INSERT INTO runner.log_writers (run_id, lease) VALUES ($1, $2)", done.id, lease)
        objects = own.objects()
        objects.put(f"{run_log_prefix(done.id)}{lease}.log", b"half", content_type="text/plain")
        objects.close()
        await _until(lambda: _empty(own, "runner.log_writers"))
        assert len(own.keys(run_log_prefix(done.id))) == 1
        assert await runner.log(done.id) == log


async def test_who_lost_the_lease_can_neither_log_nor_archive_nor_finish(
    own: Backend, own_registry: RunningRegistry, tmp_path: Path
) -> None:
    async with running_runner(own, own_registry, tmp_path / "scratch", **OPEN) as runner:
        run = await runner.run()
        await own.fetch(
            "UPDATE runner.runs SET state = 'queued', attempts = 0, lease = NULL, finished_at = NULL, log_key = NULL "
            "WHERE id = $1",
            run.id,
        )
        await own.fetch("DELETE FROM runner.outputs")
    objects = own.objects()
    async with open_pool(own.database_url, size=4, application_name="test") as pool:
        news = Notifications(own.database_url, "runner_journal")
        journal = Journal(pool, "runner", news, guard=JOURNAL_GUARD)
        lifecycle = Lifecycle(pool, journal, Turns(pool), lambda _state: None, runner="test", max_parameters_bytes=1000)
        logs = RunLogs(pool, journal, objects)
        first = await _lease(lifecycle, run.id)
        async with journal.writing(run.id, holder=first.assignment.lease) as old:
            old.write("stdout", "before")
            await old.flush()
            second = await _lease(lifecycle, run.id)
            async with journal.writing(run.id, holder=second.assignment.lease) as new:
                old.write("stdout", "too late")
                await old.flush()
                new.write("stdout", "after")
        assert [entry.message for entry in await journal.read(run.id)] == ["before", "after"]

        output = Output(path="a", size=1, digest="sha256:0", content_type="text/plain")
        ending = Ending(RunState.SUCCEEDED, "right", None, Timings(), await logs.archive(run.id, uuid4()))
        late = Ending(RunState.FAILED, "wrong", None, Timings(), None)
        assert not await lifecycle.finish(first.assignment, late, [])
        # The answer may be lost, and it is asked for again; it happens once.
        assert await lifecycle.finish(second.assignment, ending, [output])
        assert await lifecycle.finish(second.assignment, ending, [output])
        assert not await lifecycle.finish(first.assignment, late, [])
        assert await logs.archive(run.id, first.assignment.lease) is None
        async with pool.acquire() as connection:
            record = await store.get_run(connection, run.id)
            assert not await output_store.begin_upload(connection, run.id, first.assignment.lease)
        assert record is not None
        assert (record.state, record.result, record.log_key) == (RunState.SUCCEEDED, "right", ending.log_key)
    assert ending.log_key in list(objects.list(run_log_prefix(run.id)))
    objects.close()
    finished = await own.fetch(
        "SELECT FROM audit.events WHERE subject = $1 AND action = 'run.finished'", f"run/{run.id}"
    )
    assert len(finished) == 2


@contextlib.asynccontextmanager
async def _two(
    own: Backend, registry: RunningRegistry, place: Path
) -> AsyncIterator[tuple[RunnerProcess, RunnerProcess]]:
    """Two runners with leases of two seconds."""
    async with (
        runner_process(own, registry, place / "sleeper", lease_seconds=2, **OPEN) as sleeper,
        runner_process(own, registry, place / "other", lease_seconds=2, **OPEN) as other,
    ):
        yield sleeper, other


@contextlib.contextmanager
def _asleep(runner: RunnerProcess) -> Iterator[None]:
    """Send the runner to sleep for as long as the context is open."""
    runner.process.send_signal(signal.SIGSTOP)
    try:
        yield
    finally:
        if runner.process.returncode is None:
            runner.process.send_signal(signal.SIGCONT)


async def _lease(lifecycle: Lifecycle, run_id: str) -> Leased:
    leased = await lifecycle.lease(run_id, uuid4())
    assert isinstance(leased, Leased)
    return leased


async def _pid(runner: RunningRunner, run_id: str) -> int:
    line = next(line for line in (await runner.log(run_id)).splitlines() if " pid " in line)
    return int(line.rpartition(" ")[2])


async def _until(condition: Callable[[], Awaitable[bool]], *, seconds: float = 60) -> None:
    until = time.monotonic() + seconds
    while not await condition():
        assert time.monotonic() < until
        await asyncio.sleep(0.05)


async def _gone(pid: int) -> bool:
    return not alive([pid])


async def _empty(own: Backend, table: str) -> bool:
    return not await own.fetch(f"SELECT FROM {table}")  # a constant


async def _has_keys(own: Backend, run_id: str, attempt: int) -> bool:
    return bool(await asyncio.to_thread(own.keys, output_key(run_id, attempt, "")))


async def _settled(own: Backend, run_id: str, attempt: int) -> bool:
    """Whether the bucket has nothing of the run but one attempt's outputs and one log."""
    outputs = await asyncio.to_thread(own.keys, f"outputs/{run_id}/")
    logs = await asyncio.to_thread(own.keys, run_log_prefix(run_id))
    return len(logs) == 1 and all(key.startswith(output_key(run_id, attempt, "")) for key in outputs)


async def _assert_outputs(runner: RunningRunner, run_id: str, content: bytes, count: int) -> None:
    outputs = await runner.client.outputs(run_id)
    assert len(outputs) == count
    for output in outputs[:3]:
        assert await runner.client.output(run_id, output.path) == content
