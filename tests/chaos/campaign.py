"""A campaign: a load on runners, harm, calm, and the verdict."""

import asyncio
import random
import signal
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

from tests.chaos.invariants import Verdict, judge, left_over, processes_of
from tests.chaos.load import Load
from tests.chaos.monkey import Monkey, Slot
from tests.chaos.servers import OwnServers, own_servers
from tests.registry.running import running_registry

_RUNNERS = 3
_CALM_SECONDS = 90.0
_SETTLE_SECONDS = 20.0


async def campaign(seed: int, seconds: float, place: Path, show: Callable[[str], None]) -> Verdict:
    """Do harm for so many seconds, as the seed decides; then say what is not as it should be."""
    random_ = random.Random(seed)  # noqa: S311  # to be repeated, not to be secret
    scratch, trace = place / "scratch", place / "trace"
    trace.touch(mode=0o666)
    async with own_servers() as servers, running_registry(servers.backend) as registry:
        slots = [Slot(number, servers.backend, registry, scratch) for number in range(_RUNNERS)]
        load = Load(random_, lambda: [slot.runner.url for slot in slots if slot.runner], registry.token, trace)
        await load.prepare(registry)
        async with _started(slots):
            async with load.applied(per_second=4, calm_seconds=_CALM_SECONDS):
                await Monkey(random_, servers, slots, show).rage(seconds)
                show(f"         calm; {len(load.accepted.runs)} runs were accepted")
            left = await _settled(servers)
        verdict = await judge(servers.backend, load.accepted, trace)
        verdict.wrong += left + load.refused + processes_of(scratch)
        verdict.wrong += [f"{path} is still there" for path in scratch.iterdir()]
    return verdict


@asynccontextmanager
async def _started(slots: list[Slot]) -> AsyncIterator[None]:
    """All runners, while the context is open; then they are asked to end."""
    try:
        await asyncio.gather(*(slot.start() for slot in slots))
        yield
    finally:
        await asyncio.gather(*(slot.end(signal.SIGTERM) for slot in slots))


async def _settled(servers: OwnServers) -> list[str]:
    """Wait until the housekeeping has nothing more to do; what it has left."""
    until = time.monotonic() + _SETTLE_SECONDS
    while (left := await left_over(servers.backend)) and time.monotonic() < until:  # noqa: ASYNC110
        await asyncio.sleep(0.5)
    return left
