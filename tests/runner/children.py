"""Agents that are started as processes of this machine: the real program, without a cluster around it."""

import asyncio
import contextlib
import os
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from services.runner.endings import Outcome
from services.runner.remote.claims import AGENT_PATH
from services.runner.remote.place import Held, Placement
from services.runner.settings import RunnerSettings

_ROOT = Path(__file__).resolve().parents[2]

REMOTE: dict[str, Any] = {"executor": "kubernetes", "advertised_url": "http://unused", "kubernetes_image": "unused"}
"""Settings of a runner whose runs are executed by agents."""


@dataclass
class Child:
    """One agent. `process` is None where it is left to the test to be one."""

    placement: Placement
    process: asyncio.subprocess.Process | None
    name: str | None = None

    def taken(self, name: str) -> None:
        self.name = name

    async def over(self) -> Outcome:
        if self.process is None:
            await asyncio.Event().wait()
            raise AssertionError
        _, said = await self.process.communicate()
        message = f"Its agent ended with code {self.process.returncode}: {said.decode().strip()[-300:]}"
        return Outcome.failed("not_started", message) if self.name is None else Outcome.lost(message)

    def not_begun(self, seconds: float) -> Outcome:
        return Outcome.failed("not_started", f"Its agent did not come within {seconds:g} seconds.")

    def told(self) -> str:
        return "a process"


@dataclass
class Children:
    """A place. With `starts` off, none is started: the test takes the attempts. Each placement is in `placed`."""

    scratch: Path
    starts: bool = True
    environment: dict[str, str] = field(default_factory=dict)
    url: str = ""
    children: list[Child] = field(default_factory=list)
    swept: int = 0

    @contextlib.asynccontextmanager
    async def open(self, settings: RunnerSettings) -> AsyncIterator["Children"]:
        self.scratch.mkdir(exist_ok=True)
        self.url = f"http://127.0.0.1:{settings.port}{AGENT_PATH}"
        yield self

    def opener(self) -> Callable[[RunnerSettings], AbstractAsyncContextManager["Children"]]:
        return self.open

    @contextlib.asynccontextmanager
    async def placed(self, placement: Placement) -> AsyncIterator[Child]:
        process = await self._start(placement) if self.starts else None
        child = Child(placement, process)
        self.children.append(child)
        try:
            yield child
        finally:
            if process is not None and process.returncode is None:
                process.kill()
                await process.wait()

    async def sweep(self, held: Held) -> None:
        await held([])
        self.swept += 1

    async def _start(self, placement: Placement) -> asyncio.subprocess.Process:
        return await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "services.runner", "run-one"),
            cwd=_ROOT,
            env={
                "PATH": os.environ["PATH"],
                "STOWAGE_RUN_ONE_URL": self.url,
                "STOWAGE_RUN_ONE_TOKEN": placement.token,
                "STOWAGE_RUN_ONE_SCRATCH_DIR": str(self.scratch),
                **self.environment,
            },
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
        )
