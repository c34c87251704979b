"""A builder that runs: in this process, or in one of its own that can be killed."""

import asyncio
import contextlib
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import aiohttp
from aiohttp import web

from libs.common.client import BuilderClient
from services.builder.app import create_app
from services.builder.settings import BuilderSettings
from tests.backend import Backend
from tests.ports import free_port

_REPOSITORY = Path(__file__).resolve().parents[2]
_START_SECONDS = 20.0


@dataclass(frozen=True)
class RunningBuilder:
    """A builder that serves; `client` speaks with the token that was given for callers."""

    url: str
    client: BuilderClient


@asynccontextmanager
async def running_builder(
    backend: Backend, *, service_token: str, token: str, work_dir: Path, **settings: object
) -> AsyncIterator[RunningBuilder]:
    """The real application on a free port in this process; stopped in order when the context ends."""
    described = {
        **backend.settings,
        "port": 0,
        "service_token": service_token,
        "work_dir": work_dir,
        "grace_seconds": 0.5,
        "shutdown_seconds": 5,
        **settings,
    }
    application = create_app(BuilderSettings.model_validate(described))
    runner = web.AppRunner(application, access_log=None, shutdown_timeout=20, handler_cancellation=True)
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        async with BuilderClient(url, token) as client:
            yield RunningBuilder(url, client)
    finally:
        await runner.cleanup()


class BuilderProcess:
    """A builder in a process of its own, whose temporary directory is `tmpdir`."""

    def __init__(
        self, backend: Backend, *, registry_url: str, service_token: str, tmpdir: Path, settings: Mapping[str, object]
    ) -> None:
        port = free_port()
        own = {"PORT": port, "REGISTRY_URL": registry_url, "SERVICE_TOKEN": service_token, **settings}
        self.url = f"http://127.0.0.1:{port}"
        self._environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("STOWAGE_")},
            **backend.environment("STOWAGE_BUILDER_"),
            **{f"STOWAGE_BUILDER_{name.upper()}": str(value) for name, value in own.items()},
            "TMPDIR": str(tmpdir),
        }
        self._process: subprocess.Popen[bytes] | None = None

    async def start(self) -> None:
        """Start it and return when it is ready."""
        self._begin()
        async with aiohttp.ClientSession() as session, asyncio.timeout(_START_SECONDS):
            while True:
                with contextlib.suppress(aiohttp.ClientConnectionError):
                    async with session.get(f"{self.url}/readyz") as answer:
                        if answer.status == 200:
                            return
                assert self._process is not None
                assert self._process.poll() is None, "the builder ended at once"
                await asyncio.sleep(0.05)

    def _begin(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "services.builder", "serve"], cwd=_REPOSITORY, env=self._environment
        )

    async def end(self, number: int) -> int:
        """Send it a signal and wait for its end; its exit code."""
        assert self._process is not None
        self._process.send_signal(number)
        return await asyncio.to_thread(self._process.wait, 30)

    def kill(self) -> None:
        """End it, if it is there."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
