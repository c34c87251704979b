"""What goes wrong, one thing after another and sometimes two at once, as a seed decides."""

import asyncio
import contextlib
import random
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from tests.backend import Backend
from tests.chaos.servers import OwnServers
from tests.registry.running import RunningRegistry
from tests.runner.running import OPEN, RunnerProcess, runner_process

LEASE_SECONDS = 2.0
_SANDBOXES: Sequence[dict[str, Any]] = (OPEN, OPEN, {})
"""How the runners confine jobs: what the open ones execute can be traced, the last one is as it is by default."""


class Slot:
    """A place for a runner: when one ends another is started, as an orchestrator would."""

    def __init__(self, number: int, backend: Backend, registry: RunningRegistry, scratch: Path) -> None:
        self._start = partial(
            runner_process,
            backend,
            registry,
            scratch,
            module="tests.chaos.runner",
            variables={"SETTLED_SECONDS": "8"},  # longer than any pause
            lease_seconds=LEASE_SECONDS,
            drain_seconds=1,
            **_SANDBOXES[number % len(_SANDBOXES)],
        )
        self._stack = contextlib.AsyncExitStack()
        self.runner: RunnerProcess | None = None
        self.busy = asyncio.Lock()

    async def start(self) -> None:
        """Start a runner, also if it takes several attempts, since a server is away."""
        while True:
            try:
                async with asyncio.timeout(30):
                    self.runner = await self._stack.enter_async_context(self._start())
            except Exception:  # noqa: BLE001  # whatever it died of, the next one may live
                await asyncio.sleep(0.5)
            else:
                return

    async def end(self, number: signal.Signals) -> None:
        """End the runner by a signal and wait until it is gone."""
        runner, self.runner = self.runner, None
        if runner is not None:
            with contextlib.suppress(ProcessLookupError):
                runner.process.send_signal(number)
            await runner.process.wait()
        await self._stack.aclose()


class Monkey:
    """Does harm. `done` is what it did, with the seconds since it began."""

    def __init__(
        self, random_: random.Random, servers: OwnServers, slots: Sequence[Slot], show: Callable[[str], None]
    ) -> None:
        self._random = random_
        self._servers = servers
        self._slots = slots
        self._show = show
        self._begun = time.monotonic()
        self._database, self._bucket = asyncio.Lock(), asyncio.Lock()
        self._acts: dict[Callable[[float], Awaitable[None]], int] = {
            self._kill_runner: 4,
            self._terminate_runner: 2,
            self._pause_runner: 3,
            self._crash_postgres: 1,
            self._pause_postgres: 1,
            self._cut_connections: 2,
            self._kill_s3: 1,
            self._pause_s3: 2,
        }

    async def rage(self, seconds: float) -> None:
        """Do harm for so long, and return when all of it is mended."""
        async with asyncio.TaskGroup() as acts:
            while time.monotonic() - self._begun < seconds:
                act = self._random.choices(list(self._acts), weights=list(self._acts.values()))[0]
                acts.create_task(act(self._random.random()))  # type: ignore[arg-type]
                await asyncio.sleep(self._random.uniform(0.5, 3))

    async def _kill_runner(self, chance: float) -> None:
        async with self._some_slot(chance) as slot:
            self._say("kill a runner")
            await slot.end(signal.SIGKILL)
            await slot.start()

    async def _terminate_runner(self, chance: float) -> None:
        async with self._some_slot(chance) as slot:
            self._say("terminate a runner")
            await slot.end(signal.SIGTERM)
            await slot.start()

    async def _pause_runner(self, chance: float) -> None:
        async with self._some_slot(chance) as slot:
            if slot.runner is not None:
                seconds = LEASE_SECONDS + 3 * chance
                self._say(f"pause a runner for {seconds:.1f} s")
                slot.runner.process.send_signal(signal.SIGSTOP)
                await asyncio.sleep(seconds)
                slot.runner.process.send_signal(signal.SIGCONT)

    async def _crash_postgres(self, chance: float) -> None:
        async with self._database:
            self._say("crash PostgreSQL")
            await self._servers.postgres.crash()
            await asyncio.sleep(2 * chance)
            await self._servers.postgres.start()

    async def _pause_postgres(self, chance: float) -> None:
        async with self._database:
            self._say(f"pause PostgreSQL for {4 * chance:.1f} s")
            with self._servers.postgres.paused():
                await asyncio.sleep(4 * chance)

    async def _cut_connections(self, _chance: float) -> None:
        async with self._database:
            self._say("cut the runners' connections")
            await self._servers.postgres.cut_connections("stowage-runner")

    async def _kill_s3(self, chance: float) -> None:
        async with self._bucket:
            self._say("kill S3")
            await self._servers.s3.kill()
            await asyncio.sleep(2 * chance)
            await self._servers.s3.start()

    async def _pause_s3(self, chance: float) -> None:
        async with self._bucket:
            self._say(f"pause S3 for {5 * chance:.1f} s")
            with self._servers.s3.paused():
                await asyncio.sleep(5 * chance)

    @contextlib.asynccontextmanager
    async def _some_slot(self, chance: float) -> AsyncIterator[Slot]:
        slot = self._slots[int(chance * len(self._slots))]
        async with slot.busy:
            yield slot

    def _say(self, what: str) -> None:
        self._show(f"{time.monotonic() - self._begun:6.1f} s  {what}")
