"""The demo: import the environmental observatory, run its two workflows on a day of data, show what came out."""

import asyncio
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.table import Table

from infra.local.home import StackInfo
from libs.common.client import BuilderClient, RunnerClient
from libs.common.models import Build, BuildState, Import, ImportState, Step, WorkflowRun, WorkflowRunState

EXAMPLE = "environmental-observatory"
_INGEST = "observatory-hourly-ingest"
_PUBLICATION = "observatory-daily-publication"
_HOURS = 24
_POLL_SECONDS = 0.2
_REFRESH_PER_SECOND = 4
_DIGEST_CHARACTERS = 19
_PHASES = {
    "queued_ms": "queued",
    "fetch_ms": "fetch",
    "start_ms": "start",
    "handler_ms": "handler",
    "upload_ms": "outputs",
    "remove_ms": "removal",
}
_SUMMARY_CHARACTERS = 60


class DemoFailed(Exception):
    """Something went wrong; the message says what and why."""


@dataclass
class Rows:
    """What is happening, a row each: a table that lives on a terminal, a line per change elsewhere."""

    console: Console
    columns: tuple[str, ...]
    started: dict[str, float] = field(default_factory=dict)
    ended: dict[str, float] = field(default_factory=dict)
    cells: dict[str, tuple[str, ...]] = field(default_factory=dict)

    def update(self, name: str, *cells: str, running: bool, final: bool = False) -> None:
        """Set the cells of a row; its clock runs from the first update with `running` to the one with `final`."""
        if self.cells.get(name) == cells:
            return
        self.cells[name] = cells
        if running or final:
            self.started.setdefault(name, time.monotonic())
        if final:
            self.ended.setdefault(name, time.monotonic())
        if not self.console.is_terminal:
            self.console.print(f"  {name:34} {self.elapsed(name):>7}  {'  '.join(cell for cell in cells if cell)}")

    def elapsed(self, name: str) -> str:
        """How long a row has been running, as text."""
        if name not in self.started:
            return ""
        return f"{self.ended.get(name, time.monotonic()) - self.started[name]:.1f} s"

    def __rich__(self) -> Table:
        table = Table(box=None, padding=(0, 1), header_style="dim")
        table.add_column("", min_width=34)
        table.add_column("elapsed", justify="right", min_width=8)
        for column in self.columns:
            table.add_column(column, no_wrap=True)
        for name, cells in self.cells.items():
            table.add_row(name, self.elapsed(name), *cells)
        return table

    def live(self) -> Live:
        """Draw on the terminal while the context is open; elsewhere `update` prints."""
        return Live(self, console=self.console, refresh_per_second=_REFRESH_PER_SECOND, transient=False)


async def run_demo(info: StackInfo, console: Console, target: Path) -> None:
    """Import, run, fetch what came out into `target`; raises DemoFailed."""
    token = info.tokens["admin"]
    async with BuilderClient(info.builder, token) as builder, RunnerClient(info.runner, token) as runner:
        await _import_example(builder, console)
        ingest = await _run_workflow(runner, console, _INGEST, {"hours": _HOURS})
        load = _step(ingest, "load")
        publication = await _run_workflow(runner, console, _PUBLICATION, {"ingestRun": load.run_id})
        await _show_phases(runner, console, [*ingest.steps, *publication.steps])
        await _fetch_outputs(runner, publication, target)


async def _import_example(builder: BuilderClient, console: Console) -> None:
    console.print(f"\n[bold]Importing {EXAMPLE}[/bold]: every bundle is rebuilt here and published with force")
    started = await builder.start_import(EXAMPLE)
    rows = Rows(console, ("stage", "version", "digest", "platform", "result"))
    for build in started.builds:
        _show_build(rows, build)
    if console.is_terminal:
        with rows.live():
            finished = await _follow_import(builder, started, rows)
    else:
        finished = await _follow_import(builder, started, rows)
    if finished.state is not ImportState.SUCCEEDED:
        raise DemoFailed(_import_problem(finished))


async def _follow_import(builder: BuilderClient, started: Import, rows: Rows) -> Import:
    async for _number, kind, data in builder.import_events(started.id):
        if kind.startswith("build."):
            _show_build(rows, Build.model_validate(data))
    return await builder.import_(started.id)


def _show_build(rows: Rows, build: Build) -> None:
    result = ""
    match build.state:
        case BuildState.FAILED:
            result = "failed"
        case BuildState.SUCCEEDED if build.unchanged:
            result = "unchanged"
        case BuildState.SUCCEEDED if build.previous_digest:
            result = f"replaced {build.previous_digest[:_DIGEST_CHARACTERS]}"
        case BuildState.SUCCEEDED:
            result = "new"
    rows.update(
        build.slug,
        build.stage.value if build.stage else build.state.value,
        f"{build.version} r{build.revision}" if build.revision else build.version or "",
        (build.digest or "")[:_DIGEST_CHARACTERS],
        (", ".join(build.platforms) or "any") if build.digest else "",
        result,
        running=build.state is BuildState.RUNNING,
        final=build.state in (BuildState.SUCCEEDED, BuildState.FAILED),
    )


def _import_problem(finished: Import) -> str:
    parts = [f"the import {finished.id} ended as {finished.state.value}."]
    if finished.error:
        parts.append(finished.error.message)
    for build in finished.builds:
        if build.error:
            parts.append(f"{build.slug}: {build.error.message}")
            parts.extend(f"    {line}" for line in build.error.log_tail[-10:])
    return "\n".join(parts)


async def _run_workflow(runner: RunnerClient, console: Console, slug: str, parameters: dict[str, Any]) -> WorkflowRun:
    console.print(f"\n[bold]Running {slug}[/bold]")
    run = await runner.start_workflow(slug, parameters)
    rows = Rows(console, ("state", "run", "result"))
    if console.is_terminal:
        with rows.live():
            run = await _follow_workflow(runner, run, rows)
    else:
        run = await _follow_workflow(runner, run, rows)
    if run.state is not WorkflowRunState.SUCCEEDED:
        raise DemoFailed(_workflow_problem(run))
    return run


async def _follow_workflow(runner: RunnerClient, run: WorkflowRun, rows: Rows) -> WorkflowRun:
    while True:
        for step in run.steps:
            rows.update(
                step.name,
                step.state.value,
                step.run_id or "",
                _summary(step.result),
                running=step.state.value in ("queued", "running"),
                final=step.state.value not in ("waiting", "queued", "running"),
            )
        if run.state is not WorkflowRunState.RUNNING:
            return run
        await asyncio.sleep(_POLL_SECONDS)
        run = await runner.workflow_run(run.id)


async def _show_phases(runner: RunnerClient, console: Console, steps: Sequence[Step]) -> None:
    """What each run spent its time on, and how it was confined."""
    console.print("\n[bold]What the runs spent their time on[/bold], in milliseconds")
    table = Table(box=None, padding=(0, 1), header_style="dim")
    table.add_column("", no_wrap=True)
    for phase in (*_PHASES.values(), "sandbox"):
        table.add_column(phase, no_wrap=True, justify="left" if phase == "sandbox" else "right")
    for step in steps:
        if step.run_id is not None:
            run = await runner.run(step.run_id)
            spent = [getattr(run.timings, name) for name in _PHASES]
            values = ["" if value is None else str(value) for value in spent]
            table.add_row(step.name, *values, run.sandbox.level if run.sandbox else "")
    console.print(table)


def _summary(result: Any) -> str:
    """The numbers and short words of a result, as many as fit on a line."""
    if not isinstance(result, dict):
        return ""
    line = ""
    for key, value in result.items():
        if isinstance(value, int | float | str) and not isinstance(value, bool):
            longer = f"{line}, {key} {value}" if line else f"{key} {value}"
            if len(longer) <= _SUMMARY_CHARACTERS:
                line = longer
    return line


def _workflow_problem(run: WorkflowRun) -> str:
    parts = [f"the workflow {run.workflow} ended as {run.state.value}."]
    parts += [f"step {step.name}: {step.error.message}" for step in run.steps if step.error]
    return "\n".join(parts)


def _step(run: WorkflowRun, name: str) -> Step:
    return next(step for step in run.steps if step.name == name)


async def _fetch_outputs(runner: RunnerClient, publication: WorkflowRun, target: Path) -> None:
    """Replace `target` by the outputs of the publication's steps."""
    draft = target.with_name(f"{target.name}.draft")
    shutil.rmtree(draft, ignore_errors=True)
    for step in publication.steps:
        if step.run_id is None:
            continue
        for output in await runner.outputs(step.run_id):
            path = draft / output.path
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(await runner.output(step.run_id, output.path))
    shutil.rmtree(target, ignore_errors=True)
    draft.replace(target)


def show_results(info: StackInfo, console: Console, target: Path) -> None:
    """Say where to look."""
    console.print("\n[bold]What came out[/bold]")
    console.print(f"  {target}/report.html", highlight=False, soft_wrap=True)
    for path in sorted(target.rglob("*")):
        if path.is_file() and path.name != "report.html":
            console.print(f"  {path}", style="dim", highlight=False, soft_wrap=True)
    show_addresses(info, console)


def show_addresses(info: StackInfo, console: Console) -> None:
    """Say where the services are, and how to ask them."""
    s3 = info.s3
    console.print("\n[bold]Where things are[/bold]")
    for name, value in (
        ("registry", info.registry),
        ("builder", info.builder),
        ("runner", info.runner),
        ("S3", f"{s3['endpoint']}  bucket {s3['bucket']}"),
        ("S3 admin page", f"{s3['console']}  user {s3['consoleUser']}, password {s3['consolePassword']}"),
    ):
        console.print(f"  {name:14} {value}", highlight=False, soft_wrap=True)
    console.print(f"\n  export STOWAGE_TOKEN={info.tokens['admin']}", highlight=False, soft_wrap=True)
    console.print(
        f'  curl -H "Authorization: Bearer $STOWAGE_TOKEN" {info.registry}/job-bundles', highlight=False, soft_wrap=True
    )
