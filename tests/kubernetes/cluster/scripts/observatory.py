"""Import the environmental observatory, run both its workflows, and say what came of it."""

import asyncio
import json
import os
from typing import Any

from libs.common.client import BuilderClient, RunnerClient
from libs.common.models import WorkflowRun, WorkflowRunState

_EXAMPLE = "environmental-observatory"
_HOURS = 6
_POLL_SECONDS = 0.5


async def main() -> None:
    """Everything, one after the other."""
    token = os.environ["STOWAGE_TOKEN"]
    async with (
        BuilderClient("http://builder:7102", token) as builder,
        RunnerClient("http://runner:7103", token) as runner,
    ):
        started = await builder.start_import(_EXAMPLE)
        async for _event in builder.import_events(started.id):
            pass
        finished = await builder.import_(started.id)
        ingest = await _workflow(runner, "observatory-hourly-ingest", {"hours": _HOURS})
        load = next((step.run_id for step in ingest.steps if step.name == "load"), None)
        publication = await _workflow(runner, "observatory-daily-publication", {"ingestRun": load})
        runs = [await runner.run(step.run_id) for flow in (ingest, publication) for step in flow.steps if step.run_id]
        outputs = [
            output.path for step in publication.steps if step.run_id for output in await runner.outputs(step.run_id)
        ]
    answer: dict[str, Any] = {
        "import": json.loads(finished.model_dump_json(by_alias=True)),
        "workflows": {flow.workflow: flow.state.value for flow in (ingest, publication)},
        "runs": [json.loads(run.model_dump_json(by_alias=True)) for run in runs],
        "outputs": outputs,
    }
    print(json.dumps(answer))


async def _workflow(runner: RunnerClient, slug: str, parameters: dict[str, Any]) -> WorkflowRun:
    run = await runner.start_workflow(slug, parameters)
    while run.state is WorkflowRunState.RUNNING:
        await asyncio.sleep(_POLL_SECONDS)
        run = await runner.workflow_run(run.id)
    return run


if __name__ == "__main__":
    asyncio.run(main())
