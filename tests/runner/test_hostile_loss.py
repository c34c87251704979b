"""A runner that is killed takes its jobs with it, whatever they have started."""

import asyncio
from pathlib import Path

import psutil
import pytest

from tests.backend import fresh_backend
from tests.registry.running import running_registry
from tests.runner.hostile import MARK, target
from tests.runner.running import alive
from tests.servers import Servers

_SCATTERED = f"""
    import os, time
    def handler(context):
        read, write = os.pipe()
        for _ in range(5):
            if os.fork() == 0:
                os.setsid()
                if os.fork() == 0:
                    os.setsid()
                    os.write(write, b'x')
                    os.execve('/bin/sh', ['{MARK}', '-c', 'trap "" TERM HUP; while :; do /bin/sleep 1; done'], {{}})
                os._exit(0)
        for _ in range(5):
            os.read(read, 1)
        context.logger('scattered')
        time.sleep(60)
"""


@pytest.mark.parametrize("level", ["bubblewrap", "landlock"])
async def test_no_job_outlives_a_runner_that_is_killed(servers: Servers, tmp_path: Path, level: str) -> None:
    async with (
        fresh_backend(servers) as backend,
        running_registry(backend) as registry,
        target(backend, registry, tmp_path / "scratch", level) as victim,
    ):
        run = await victim.start(_SCATTERED)
        await victim.runner.logged(run.id, "scattered")
        below = [child.pid for child in psutil.Process(victim.pid).children(recursive=True)]
        assert len(below) >= 7  # the sandbox, the interpreter, five others
        await victim.runner.kill()
        async with asyncio.timeout(20):
            while alive(below):  # noqa: ASYNC110
                await asyncio.sleep(0.02)
        assert victim.strays() == []
