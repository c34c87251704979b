"""A runner that serves on a free port, in this process or in one of its own, for tests of the runner and of others."""

import asyncio
import contextlib
import json
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp

from libs.common.client import RunnerClient
from libs.common.models import Run, RunRequest, WorkflowRun, WorkflowRunState
from libs.common.web import serve
from services.runner.app import OpenPlace, create_app
from services.runner.settings import RunnerSettings
from tests.backend import Backend
from tests.ports import free_port
from tests.registry.running import Answer, RunningRegistry, make_token

OPEN: dict[str, Any] = {"sandbox": "limits", "sandbox_minimum": "limits"}
"""Settings with which jobs may touch the machine: for tests that look at what a job did outside its directory."""

_CHECKS = ("database", "bucket", "queue")
_ROOT = Path(__file__).resolve().parents[2]


@dataclass
class RunningRunner:
    """A runner that is up. `token` is an administrator's, `client` uses it, `scratch` is where its runs live."""

    url: str
    token: str
    backend: Backend
    client: RunnerClient
    scratch: Path
    session: aiohttp.ClientSession = field(repr=False)
    stop: asyncio.Event = field(default_factory=asyncio.Event, repr=False)

    async def request(self, method: str, path: str, *, token: str | None = "", **options: Any) -> Answer:
        """Any request; with the administrator's token unless another is given, or None for none. A text is JSON."""
        headers = dict(options.pop("headers", {}))
        if isinstance(options.get("data"), str):
            headers.setdefault("Content-Type", "application/json")
        if token is not None:
            headers["Authorization"] = f"Bearer {token or self.token}"
        async with self.session.request(method, self.url + path, headers=headers, **options) as response:
            return Answer(response.status, response.headers, await response.read())

    async def start(self, bundle: str = "hello@latest", **more: Any) -> Run:
        """Ask for a run of a bundle."""
        return await self.client.start_run(RunRequest(bundle=bundle, **more))

    async def run(self, bundle: str = "hello@latest", *, seconds: float = 60, **more: Any) -> Run:
        """Run a bundle and wait for the end."""
        return await self.finished((await self.start(bundle, **more)).id, seconds=seconds)

    async def finished(self, run_id: str, *, seconds: float = 60) -> Run:
        """A run, once it has ended."""
        async with asyncio.timeout(seconds):
            while not (run := await self.client.run(run_id)).state.final:  # noqa: ASYNC110
                await asyncio.sleep(0.02)
        return run

    async def in_state(self, run_id: str, state: str, *, seconds: float = 30) -> Run:
        """A run, once it is in a state."""
        async with asyncio.timeout(seconds):
            while (run := await self.client.run(run_id)).state.value != state:  # noqa: ASYNC110
                await asyncio.sleep(0.02)
        return run

    async def workflow_finished(self, workflow_run_id: str, *, seconds: float = 60) -> WorkflowRun:
        """A workflow run, once it has ended."""
        async with asyncio.timeout(seconds):
            while True:
                run = await self.client.workflow_run(workflow_run_id)
                if run.state is not WorkflowRunState.RUNNING:
                    return run
                await asyncio.sleep(0.02)

    async def log(self, run_id: str) -> str:
        """The log of a run."""
        return (await self.request("GET", f"/runs/{run_id}/log")).body.decode()

    async def logged(self, run_id: str, text: str, *, seconds: float = 30) -> None:
        """Wait until the log of a run has `text`."""
        async with asyncio.timeout(seconds):
            while text not in await self.log(run_id):  # noqa: ASYNC110
                await asyncio.sleep(0.02)

    def left_in_scratch(self) -> list[str]:
        """What runs have left below the scratch directory; cells that wait for a run are empty."""
        return sorted(str(path.relative_to(self.scratch)) for path in self.scratch.glob("runner-*/*/*/*"))

    async def audit(self, subject: str) -> list[dict[str, Any]]:
        """What the trail says of a subject, oldest first."""
        rows = await self.backend.fetch(
            "SELECT actor, action, digest, detail FROM audit.events WHERE subject = $1 ORDER BY id", subject
        )
        return [{**dict(row), "detail": json.loads(row["detail"])} for row in rows]


@dataclass
class RunnerProcess(RunningRunner):
    """A runner in a process of its own."""

    process: asyncio.subprocess.Process = field(kw_only=True)

    async def kill(self) -> None:
        """SIGKILL."""
        self.process.kill()
        await self.process.wait()

    async def terminate(self, *, seconds: float = 30) -> int:
        """SIGTERM; its exit code."""
        self.process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(seconds):
            return await self.process.wait()


@contextlib.asynccontextmanager
async def running_runner(
    backend: Backend,
    registry: RunningRegistry,
    scratch: Path,
    *,
    needed_checks: Sequence[str] = _CHECKS,
    open_place: OpenPlace | None = None,
    address: str = "127.0.0.1",
    **settings: Any,
) -> AsyncIterator[RunningRunner]:
    """The real application, served in this process on a free port of `address`.

    `needed_checks` are those that must be fine before it counts as up, `open_place` is where agents are started if runs
    are executed by such.
    """
    port = free_port()
    chosen = RunnerSettings(**await _settings(backend, registry, scratch, port, {"host": address, **settings}))
    stop = asyncio.Event()
    serving = asyncio.create_task(
        serve(
            create_app(chosen, open_place=open_place),
            service="runner",
            host=address,
            port=port,
            shutdown_seconds=5,
            stop=stop,
        )
    )
    url = f"http://{address}:{port}"
    try:
        async with aiohttp.ClientSession() as session, RunnerClient(url, registry.token) as client:
            await _until_ready(session, url, serving.done, needed_checks)
            if serving.done():
                serving.result()
            yield RunningRunner(url, registry.token, backend, client, scratch, session, stop)
    finally:
        stop.set()
        await serving


@contextlib.asynccontextmanager
async def runner_process(
    backend: Backend,
    registry: RunningRegistry,
    scratch: Path,
    *,
    prefix: Sequence[str] = (),
    module: str = "services.runner",
    variables: Mapping[str, str] | None = None,
    **settings: Any,
) -> AsyncIterator[RunnerProcess]:
    """The same as a program, to be killed.

    `prefix` is a command that executes the one behind it, `module` a program that stands in for the runner's.
    """
    port = free_port()
    chosen = await _settings(backend, registry, scratch, port, settings)
    environment = {f"STOWAGE_RUNNER_{name.upper()}": str(value) for name, value in chosen.items()}
    with (scratch.parent / f"{scratch.name}-{port}.log").open("wb") as log:
        process = await asyncio.create_subprocess_exec(
            *(*prefix, sys.executable, "-m", module, "serve"),
            cwd=_ROOT,
            env={"PATH": os.environ["PATH"], **environment, **(variables or {})},
            stdout=log,
            stderr=log,
        )
    url = f"http://{settings.get('host', '127.0.0.1')}:{port}"
    try:
        async with aiohttp.ClientSession() as session, RunnerClient(url, registry.token) as client:
            await _until_ready(session, url, lambda: process.returncode is not None)
            if process.returncode is not None:
                raise RuntimeError(f"it ended with code {process.returncode}: {Path(log.name).read_text()}")
            yield RunnerProcess(url, registry.token, backend, client, scratch, session, process=process)
    finally:
        if process.returncode is None:
            process.terminate()
            await process.wait()


async def _settings(
    backend: Backend, registry: RunningRegistry, scratch: Path, port: int, settings: dict[str, Any]
) -> dict[str, Any]:
    scratch.mkdir(exist_ok=True)
    return {
        **backend.settings,
        "advertised_url": f"http://{settings.get('host', '127.0.0.1')}:{port}",
        "port": port,
        "registry_url": registry.url,
        "service_token": await make_token(backend, "runner", "bundles:read"),
        "scratch_dir": scratch,
        "concurrency": 2,
        "abort_seconds": 0.3,
        "kill_seconds": 0.3,
        **settings,
    }


def alive(pids: Iterable[int]) -> list[int]:
    """Those of `pids` that still run; who has ended and only waits for somebody to ask how does not."""
    found = []
    for pid in pids:
        with contextlib.suppress(OSError):
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in ("Z", "X"):
                found.append(pid)
    return found


async def _until_ready(
    session: aiohttp.ClientSession, url: str, ended: Callable[[], bool], needed: Sequence[str] = _CHECKS
) -> None:
    async with asyncio.timeout(60):
        while not ended():
            with contextlib.suppress(aiohttp.ClientError):
                async with session.get(f"{url}/readyz") as response:
                    checks = (await response.json())["checks"]
                    if all(checks[name] == "ok" for name in needed):
                        return
            await asyncio.sleep(0.02)
