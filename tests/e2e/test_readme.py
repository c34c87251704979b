"""The README's tour says what happens: its shell blocks are run, in order, against a stack."""

import asyncio
import json
import re
from pathlib import Path

from tests.e2e.stack import REPOSITORY, new_place, stack_up


async def test_the_tour_works_as_written(tmp_path: Path) -> None:
    readme = (REPOSITORY / "README.md").read_text()
    tour = readme[readme.index("## Five minutes with curl") : readme.index("## Where things are")]
    blocks = re.findall(r"```sh\n(.*?)```", tour, re.DOTALL)
    assert len(blocks) == 7
    place = new_place(tmp_path)
    async with stack_up(place) as info:
        script = "\necho; echo ---\n".join(blocks)
        script = script.replace("http://127.0.0.1:7101", info.registry).replace("http://127.0.0.1:7103", info.runner)
        script = script.replace(".stowage", str(place.home.path))
        process = await asyncio.create_subprocess_exec(
            "bash", "-euo", "pipefail", "-c", script,
            cwd=tmp_path, env=place.environment, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
        )  # fmt: skip
        output, _ = await process.communicate()
    assert process.returncode == 0, output.decode()
    _setup, published, conflict, forced, history, back, run = output.decode().split("\n---\n")
    assert json.loads(published)["revision"] == 1
    assert json.loads(conflict)["status"] == 409
    assert json.loads(conflict)["difference"]["changedPaths"] == ["main.py"]
    assert json.loads(forced)["revision"] == 2
    assert json.loads(forced)["reason"] == "friendlier"
    revisions, events = (json.loads(line) for line in history.strip().splitlines())
    assert [item["revision"] for item in revisions["items"]] == [2, 1]
    assert [item["action"] for item in events["items"]] == ["version.replaced", "version.published"]
    difference, rolled_back = (json.loads(line) for line in back.strip().splitlines())
    assert [item["path"] for item in difference["items"]] == ["main.py"]
    assert "Good morning" in difference["items"][0]["text"]
    assert (rolled_back["revision"], rolled_back["reason"]) == (3, "too friendly")
    assert "[stdout] this is a log line" in run
    assert json.loads(run.strip().splitlines()[-1])["result"] == {"greeting": "Hello, Ada!"}
