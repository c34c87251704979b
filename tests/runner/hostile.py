"""A runner to attack: what its secrets are, a neighbour that works beside an attack, and what an attack has left."""

import contextlib
import os
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

import psutil

from libs.common.models import JobDefinition, Limits, Run, RunRequest, RunState
from libs.common.objects import output_key
from tests.backend import Backend
from tests.registry.running import RunningRegistry, make_token
from tests.runner.bundles import node, publish, python
from tests.runner.running import RunnerProcess, alive, runner_process

MIB = 2**20
LIMITS = {
    "memory_bytes": 256 * MIB,
    "processes": 64,
    "disk_bytes": 64 * MIB,
    "file_bytes": 64 * MIB,
    "files": 2000,
    "cpu_seconds": 60,
    "open_files": 256,
    "timeout_seconds": 20,
    "max_log_bytes": 64 * 1024,
    "max_result_bytes": 64 * 1024,
    "max_outputs": 500,
    "max_output_bytes": 32 * MIB,
}
"""Small, so that a bomb is small, too."""

MARK = f"hostile-stray-{os.getpid()}"
"""In the command line of whatever a job leaves behind, to be found by."""

_NEIGHBOUR = python(
    """
    import subprocess, time
    from pathlib import Path
    def handler(context):
        context.logger('at work')
        until, rounds = time.monotonic() + context.parameters['seconds'], 0
        while time.monotonic() < until or rounds < 3:
            block = bytearray(2**20)
            path = Path(context.output_dir, f'{rounds % 5}.txt')
            path.write_text(f'round {rounds}')
            assert path.read_text() == f'round {rounds}'
            assert subprocess.run(['/bin/sh', '-c', 'echo $((40 + 2))'], capture_output=True).stdout == b'42\\n'
            print('round', rounds)
            rounds += 1
            time.sleep(0.02)
        return 'undisturbed'
""",
    slug="neighbour",
)


@dataclass
class Target:
    """A runner in a process of its own, and what nobody may get from it."""

    level: str
    runner: RunnerProcess
    registry: RunningRegistry
    secrets: tuple[str, ...] = field(repr=False)
    _names: Any = field(default_factory=lambda: count(1), repr=False)

    @property
    def pid(self) -> int:
        """The runner's."""
        return self.runner.process.pid

    async def start(
        self, code: str, parameters: dict[str, Any] | None = None, limits: dict[str, Any] | None = None
    ) -> Run:
        """Start a job. Code that defines a Python function is Python, else it is JavaScript."""
        slug = f"job-{next(self._names)}"
        make = python if "def handler(" in code else node
        await publish(self.registry, make(code, slug=slug), slug)
        await self.registry.client.put_job(slug, JobDefinition(bundle=f"{slug}@1.0.0", limits=Limits(**limits or {})))
        return await self.runner.client.start_run(RunRequest(job=slug, parameters=parameters or {}))

    async def attack(
        self,
        code: str,
        parameters: dict[str, Any] | None = None,
        *,
        limits: dict[str, Any] | None = None,
        neighbour_seconds: float = 0.0,
    ) -> Run:
        """Run a job beside a neighbour, who must not notice. The runner stays ready, and nothing is left of the job."""
        neighbour = None
        if neighbour_seconds:
            neighbour = await self.runner.start(bundle="neighbour@1.0.0", parameters={"seconds": neighbour_seconds})
            await self.runner.logged(neighbour.id, "at work")
        run = await self.attack_beside(code, parameters, limits=limits)
        if neighbour is not None:
            ended = await self.runner.finished(neighbour.id)
            assert (ended.state, ended.result, ended.attempts) == (RunState.SUCCEEDED, "undisturbed", 1), ended.error
            after = await self.runner.run("neighbour@1.0.0", parameters={"seconds": 0})
            assert after.state is RunState.SUCCEEDED, after.error
        self.require_nothing_left(run)
        return run

    async def attack_beside(
        self, code: str, parameters: dict[str, Any] | None = None, *, limits: dict[str, Any] | None = None
    ) -> Run:
        """The same beside runs that the test has started, so that what is left can't be told."""
        run = await self.runner.finished((await self.start(code, parameters, limits)).id)
        assert (await self.runner.request("GET", "/readyz")).status == 200
        await self.require_no_secret(run)
        return run

    def require_nothing_left(self, run: Run) -> None:
        """No process, no directory, and in the bucket only the outputs of a run that succeeded."""
        assert self.runner.process.returncode is None
        assert alive(child.pid for child in psutil.Process(self.pid).children(recursive=True)) == []
        assert self.strays() == []
        assert list(self.runner.scratch.glob("runner-*/*")) == []
        if run.state is not RunState.SUCCEEDED:
            assert self.runner.backend.keys(output_key(run.id, 1, "")) == []

    async def require_no_secret(self, run: Run) -> None:
        """Neither what the job returned nor what it logged holds a secret."""
        said = run.model_dump_json() + await self.runner.log(run.id)
        assert [secret for secret in self.secrets if secret in said] == []

    def strays(self) -> list[int]:
        """Processes anywhere on the machine that tell that they are a job's."""
        found = []
        marks = (MARK.encode(), b"HOME=" + os.fsencode(self.runner.scratch))
        for process in Path("/proc").iterdir():
            if process.name.isdigit() and int(process.name) != os.getpid():
                with contextlib.suppress(OSError):
                    said = (process / "cmdline").read_bytes() + (process / "environ").read_bytes()
                    if any(mark in said for mark in marks):
                        found.append(int(process.name))
        return alive(found)


@contextlib.asynccontextmanager
async def target(
    backend: Backend, registry: RunningRegistry, scratch: Path, level: str, **settings: Any
) -> AsyncIterator[Target]:
    """A runner at a level. It keeps no cells warm, so that what runs when no run does is a stray."""
    token = await make_token(backend, f"runner-{level}", "bundles:read")
    chosen = {"sandbox": level, "sandbox_minimum": level, "concurrency": 3, "warm": 0, "service_token": token}
    async with runner_process(backend, registry, scratch, **{**LIMITS, **chosen, **settings}) as runner:
        await publish(registry, _NEIGHBOUR, "neighbour")
        yield Target(level, runner, registry, (token, backend.secret_key, backend.database_url))
