"""Where no sandbox is wanted, what a job does to its directory still leads nowhere."""

from pathlib import Path

import pytest

from libs.common.removal import remove_tree
from tests.registry.running import RunningRegistry
from tests.runner.bundles import publish, python
from tests.runner.running import OPEN, RunningRunner

RUNNER_SETTINGS = OPEN


@pytest.mark.parametrize(
    "trick",
    [
        "os.rmdir(out); os.symlink(place, out)",
        "os.rename(root, root + '.moved'); os.symlink(place, root); os.makedirs(place + '/outputs')",
    ],
)
async def test_nothing_is_taken_from_where_a_job_makes_its_outputs_point(
    registry: RunningRegistry, runner: RunningRunner, tmp_path: Path, trick: str
) -> None:
    (tmp_path / "secret").write_text("secret")
    code = f"""
        import os
        def handler(context):
            out = context.output_dir
            root, place = os.path.dirname(out), {str(tmp_path)!r}
            {trick}
    """
    await publish(registry, python(code))
    run = await runner.run()
    assert run.error is not None
    assert run.error.type == "output_unreadable"
    assert runner.backend.keys(f"outputs/{run.id}/") == []
    assert (tmp_path / "secret").read_text() == "secret"
    for moved in runner.scratch.glob("runner-*/*.moved"):
        remove_tree(moved)
