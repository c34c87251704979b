"""What a job that Landlock confines learns of its control groups: its limits, and nothing else."""

import pytest

from tests.registry.running import RunningRegistry
from tests.runner.bundles import publish, python
from tests.runner.running import RunningRunner

RUNNER_SETTINGS = {"sandbox": "landlock"}

_LOOKS = """
    import os
    NAMES = {
        '': ['memory.max', 'memory.high', 'cpu.max'],
        'memory': ['memory.limit_in_bytes'],
        'cpu': ['cpu.cfs_quota_us', 'cpu.cfs_period_us'],
    }
    def opens(path):
        try:
            open(path).close()
        except PermissionError:
            return False
        return True
    def handler(context):
        limits, others = {}, {}
        for line in open('/proc/self/cgroup'):
            _, controllers, path = line.strip().split(':', 2)
            for controller in controllers.split(','):
                for place in (f'/sys/fs/cgroup/{controller}', f'/sys/fs/cgroup/{controller}/{path}'):
                    for name in NAMES.get(controller, []):
                        if os.path.exists(f'{place}/{name}'):
                            limits[f'{place}/{name}'] = opens(f'{place}/{name}')
                    if os.path.exists(f'{place}/cgroup.procs'):
                        others[f'{place}/cgroup.procs'] = opens(f'{place}/cgroup.procs')
        return {'limits': limits, 'others': others}
"""


async def test_a_job_reads_its_limits_and_nothing_else_of_control_groups(
    registry: RunningRegistry, runner: RunningRunner
) -> None:
    await publish(registry, python(_LOOKS))
    run = await runner.run()
    assert run.result is not None, run.error
    if not run.result["limits"]:
        pytest.skip("this machine bounds its root control group alone, which has no files with limits")
    assert set(run.result["limits"].values()) == {True}, run.result
    assert run.result["others"]
    assert set(run.result["others"].values()) == {False}, run.result
