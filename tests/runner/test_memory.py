"""The memory that a runner has for its jobs is shared out by what each may use."""

import asyncio

import pytest

from libs.common.models import JobDefinition, Limits, RunRequest, RunState
from services.runner.endings import AttemptInterrupted, RunFailed
from services.runner.interrupts import Interrupt, Interrupts
from services.runner.memory import MemoryBudget
from tests.registry.running import RunningRegistry
from tests.runner.bundles import publish, python
from tests.runner.running import RunningRunner

_MIB = 1024 * 1024
RUNNER_SETTINGS = {"concurrency": 3, "memory_bytes": 100 * _MIB}


async def test_a_share_is_had_in_order_and_given_back_whatever_happens() -> None:
    budget, log = MemoryBudget(10), []

    async def use(name: str, amount: int) -> None:
        async with budget.share(amount, Interrupts()):
            log.append(name)
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            if name == "fails":
                raise KeyError(name)
            log.append(f"{name} done")

    results = await asyncio.gather(use("fails", 6), use("large", 7), use("small", 1), return_exceptions=True)
    assert [type(result) for result in results] == [KeyError, type(None), type(None)]
    assert log == ["fails", "large", "small", "large done", "small done"]  # the small one did not overtake
    async with budget.share(10, Interrupts()):
        pass


async def test_who_is_interrupted_while_waiting_keeps_nobody_else_waiting() -> None:
    budget, interrupts = MemoryBudget(10), Interrupts()

    async def wait(amount: int, interrupts: Interrupts) -> None:
        async with budget.share(amount, interrupts):
            pass

    async with budget.share(6, Interrupts()):
        waiting = asyncio.create_task(wait(8, interrupts))
        behind = asyncio.create_task(wait(3, Interrupts()))
        await asyncio.sleep(0)
        interrupts.set(Interrupt.CANCEL)
        with pytest.raises(AttemptInterrupted):
            await waiting
        await behind


async def test_more_than_there_is_at_all_is_refused() -> None:
    with pytest.raises(RunFailed, match="The job may use 2 MiB of memory, and this runner has 1 MiB"):
        async with MemoryBudget(_MIB).share(2 * _MIB, Interrupts()):
            pass


async def test_runs_that_want_much_memory_go_one_after_the_other(
    registry: RunningRegistry, runner: RunningRunner
) -> None:
    await publish(
        registry,
        python("""
            import time
            def handler(context):
                begun = time.time()
                time.sleep(0.5)
                return [begun, time.time()]
        """),
    )
    for name, share in (("half", 200), ("all", 301)):
        limits = Limits(memory_bytes=share * _MIB)
        await registry.client.put_job(name, JobDefinition(bundle="hello@latest", limits=limits))
    runs = [await runner.client.start_run(RunRequest(job="half")) for _ in range(2)]
    spans = sorted([(await runner.finished(run.id)).result for run in runs])
    assert spans[0][1] <= spans[1][0]
    refused = await runner.finished((await runner.client.start_run(RunRequest(job="all"))).id)
    assert refused.state is RunState.FAILED
    assert refused.error is not None
    assert refused.error.type == "memory_unavailable"
