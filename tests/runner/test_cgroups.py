"""A runner that has a control group to itself divides it: one part for each job, with which everything in it ends."""

import contextlib
import os
import secrets
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from libs.common.models import RunState
from services.runner.sandbox.cgroups import ControlGroups
from tests.backend import Backend
from tests.registry.running import RunningRegistry
from tests.runner.bundles import publish, python
from tests.runner.running import OPEN, RunnerProcess, alive, runner_process

_DAEMON = """
    import os, time
    def handler(context):
        if os.fork() == 0:
            os.setsid()
            if os.fork() == 0:
                os.environ.clear()
                context.logger(f'daemon {os.getpid()}')
                os.execv('/bin/sleep', ['sleep', '600'])
            os._exit(0)
        time.sleep(0.3)
        return os.readlink('/proc/self/exe') and open('/proc/self/cgroup').read()
"""


@pytest.fixture
def own_group() -> Iterator[Path]:
    """A control group of the test's own; only who may make one can be delegated one."""
    mounts = [line.split() for line in Path("/proc/mounts").read_text().splitlines()]
    place = next((Path(fields[1]) for fields in mounts if fields[2] == "cgroup2"), None)
    if place is None or not os.access(place, os.W_OK):
        pytest.skip("control groups (version 2) can't be made by this user on this machine")
    group = place / f"stowage-test-{secrets.token_hex(4)}"
    group.mkdir()
    yield group
    for left in (*group.glob("*/"), group):
        left.rmdir()


@pytest.fixture
async def divided(
    shared_backend: Backend, registry: RunningRegistry, own_group: Path, tmp_path: Path
) -> AsyncIterator[RunnerProcess]:
    """A runner that was started alone in the group."""
    alone = ("sh", "-c", f'echo $$ > {own_group}/cgroup.procs && exec "$@"', "sh")
    async with runner_process(shared_backend, registry, tmp_path / "scratch", prefix=alone, warm=1, **OPEN) as running:
        yield running


async def test_each_job_has_a_group_and_what_it_left_ends_with_it(
    registry: RunningRegistry, divided: RunnerProcess, own_group: Path
) -> None:
    await publish(registry, python(_DAEMON))
    run = await divided.run()
    assert run.state is RunState.SUCCEEDED, run.error
    assert run.sandbox is not None
    assert "cgroup" in run.sandbox.layers
    group = run.result.strip().rpartition("::")[2]
    assert f"/{own_group.name}/job-" in group
    log = await divided.log(run.id)
    daemon = int(log.split("daemon ")[1].split()[0])
    assert alive([daemon]) == []
    assert not (own_group.parent / group.lstrip("/")).exists()
    await divided.terminate()
    assert [path.name for path in own_group.glob("*/")] == ["runner"]


async def test_groups_that_a_killed_runner_left_are_removed_by_the_next(
    shared_backend: Backend, registry: RunningRegistry, own_group: Path, tmp_path: Path
) -> None:
    alone = ("sh", "-c", f'echo $$ > {own_group}/cgroup.procs && exec "$@"', "sh")
    for number in range(2):
        async with runner_process(
            shared_backend, registry, tmp_path / f"scratch-{number}", prefix=alone, warm=1, **OPEN
        ) as running:
            left = {path.name for path in own_group.glob("job-*")}
            assert left
            if number == 0:
                (own_group / "job-left").mkdir()
                await running.kill()
            else:
                assert "job-left" not in left


def test_a_group_that_is_shared_with_others_or_the_machines_is_not_divided() -> None:
    with contextlib.suppress(ProcessLookupError):
        assert ControlGroups.claim() is None
