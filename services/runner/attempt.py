"""One attempt at a run: check, make room, start the interpreter, fetch, verify, execute, collect."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from libs.common.database import Pool
from libs.common.errors import Unavailable
from libs.common.journal import JournalWriter
from libs.common.manifest import Manifest
from libs.common.models import Artifact, InputSource, Limits, Output, RunState
from libs.common.objects import ObjectStore
from services.runner import store
from services.runner.cells import Cell, CellKind, Cells
from services.runner.compatibility import Runtimes, read_runnable_manifest, require_platform, require_runtime
from services.runner.endings import AttemptInterrupted, Outcome, RunFailed
from services.runner.events import dispatch
from services.runner.fetching import Arrival, fetch_bundle, fetch_inputs, plan_inputs
from services.runner.interrupts import Interrupts
from services.runner.masking import Mask
from services.runner.memory import MemoryBudget
from services.runner.metering import Meter
from services.runner.outputs import OutputLimits, find_outputs
from services.runner.persistence import best_effort, persistently
from services.runner.process import Listeners
from services.runner.sandbox.layers import Confinement
from services.runner.scratch import RunDirectory
from services.runner.secrets import SecretProvider, resolve
from services.runner.settings import RunnerSettings
from services.runner.standing import Standing
from services.runner.store import Assignment, Timings
from services.runner.supervision import Patience, Voice, supervise
from services.runner.uploads import Uploads
from services.runner.values import clean_text

_PROGRESS_SECONDS = 0.25
_SHOWN_AFTER_SECONDS = 0.05
_SHOWN_PATHS = 5

Value = TypeVar("Value")


@dataclass(frozen=True, slots=True)
class Workshop:
    """What every attempt of this runner works with."""

    settings: RunnerSettings
    pool: Pool
    objects: ObjectStore
    cells: Cells
    memory: MemoryBudget
    runtimes: Runtimes
    threads: Executor
    secrets: Sequence[SecretProvider]
    standing: Standing

    async def in_thread(self, work: Callable[..., Value], *arguments: Any) -> Value:
        """Do what blocks in a thread that no request waits for."""
        return await asyncio.get_running_loop().run_in_executor(self.threads, work, *arguments)


class Attempt:
    """One attempt, by whoever holds the lease of `assignment`."""

    def __init__(self, workshop: Workshop, assignment: Assignment, log: JournalWriter, interrupts: Interrupts) -> None:
        self._workshop = workshop
        self._settings = workshop.settings
        self._assignment = assignment
        self._artifact = Artifact.model_validate(assignment.artifact)
        limits = Limits.model_validate(assignment.limits)
        self._timeout_seconds = limits.timeout_seconds or self._settings.timeout_seconds
        given = limits.model_dump(exclude={"timeout_seconds"}, exclude_none=True)
        self._limits = replace(self._settings.job_limits(), **given)
        self._log = log
        self._interrupts = interrupts
        self._mask = Mask()
        self._begun = time.monotonic()
        self.timings = Timings()
        self.arrival = Arrival()
        self.confinement: Confinement | None = None

    async def execute(self) -> Outcome:
        """See the run through. The directory is gone when this returns or raises AttemptInterrupted."""
        try:
            manifest = read_runnable_manifest(self._artifact)
            if self._settings.platform_check:
                require_platform(self._artifact.native)
            require_runtime(manifest, self._workshop.runtimes)
            async with self._cell(manifest) as cell:
                return await self._execute_in(cell, manifest)
        except RunFailed as error:
            return Outcome.failed(error.kind, self._mask.text(str(error)), log_tail=error.log_tail)

    @contextlib.asynccontextmanager
    async def _cell(self, manifest: Manifest) -> AsyncIterator[Cell]:
        kind = CellKind(manifest.language, self._network(manifest), self._limits)
        async with (
            self._workshop.memory.share(self._limits.memory_bytes, self._interrupts),
            self._cell_of(kind) as cell,
        ):
            yield cell

    @contextlib.asynccontextmanager
    async def _cell_of(self, kind: CellKind) -> AsyncIterator[Cell]:
        try:
            cell = await self._workshop.cells.take(kind, self._artifact.unpacked_size)
        except OSError as error:
            raise RunFailed("not_started", f"The job's process could not be started: {error.strerror}.") from error
        self.confinement = cell.confinement
        try:
            yield cell
        finally:
            begun = time.monotonic()
            await self._workshop.cells.remove(cell)
            self._workshop.cells.refill()
            self._note(remove_ms=_since(begun))

    def _network(self, manifest: Manifest) -> bool:
        wanted = "network" in manifest.capabilities
        if wanted and not self._settings.allow_network:
            raise RunFailed(
                "network_refused",
                "The bundle's manifest asks for the capability “network”, which this runner gives to no job. Run it "
                "where STOWAGE_RUNNER_ALLOW_NETWORK is true, or publish it without.",
            )
        return wanted

    async def _execute_in(self, cell: Cell, manifest: Manifest) -> Outcome:
        directory, process = cell.directory, cell.process
        secrets = await resolve(self._assignment.secrets, self._workshop.secrets)
        self._mask = Mask(secrets.values())
        voice = Voice(self._log, self._mask)
        await self._require_released()
        inputs = await self._fetch(directory)
        entry = directory.bundle / manifest.entry
        if not entry.is_file():
            raise RunFailed("entry_missing", f"The bundle has no file {manifest.entry}, which its manifest names.")
        self._note(fetch_ms=_since(self._begun))
        if self._interrupts.reason is not None:
            raise AttemptInterrupted
        maximum = self._settings.max_result_bytes
        process.attend(
            Listeners(
                stdout=lambda line: voice.output("stdout", line),
                stderr=lambda line: voice.output("stderr", line),
                event=lambda line: dispatch(line, voice, max_result_bytes=maximum),
            )
        )
        outcome = await self._supervise(cell, voice, self._start_message(cell, manifest.entry, inputs, secrets))
        if outcome.state is RunState.SUCCEEDED:
            outcome = replace(outcome, outputs=await self._collect(directory.outputs))
        return outcome

    def _start_message(self, cell: Cell, entry: str, inputs: list[str], secrets: dict[str, str]) -> dict[str, Any]:
        run, inside = self._assignment, cell.interior
        return {
            "entry": f"{inside.bundle}/{entry}",
            "root": inside.bundle,
            "parameters": run.parameters,
            "secrets": secrets,
            "maxResultBytes": self._settings.max_result_bytes,
            "environment": {
                "STOWAGE_RUN_ID": run.id,
                "STOWAGE_RUN_ATTEMPT": str(run.attempts),
                "STOWAGE_BUNDLE": f"{run.slug}@{run.version}",
                "STOWAGE_BUNDLE_DIGEST": run.digest,
            },
            "context": {
                "inputs": {name: f"{inside.inputs}/{name}" for name in inputs},
                "outputDir": inside.outputs,
                "workDir": inside.tmp,
                "run": {
                    "id": run.id,
                    "attempt": run.attempts,
                    "bundle": f"{run.slug}@{run.version}",
                    "digest": run.digest,
                },
            },
        }

    async def _require_released(self) -> None:
        run = self._assignment
        try:
            await self._workshop.standing.require_released(run.slug, run.digest)
        except Unavailable as error:  # what was accepted does not depend on the registry
            message = f"the registry did not say whether {run.slug}@{run.version} is quarantined: {error.message}"
            self._log.write("system", message, level="warning")

    async def _fetch(self, directory: RunDirectory) -> list[str]:
        """Bring in bundle and inputs; the names of the inputs. When this returns, all of it was verified."""
        workshop, flag = self._workshop, self._interrupts.flag
        sources = {name: InputSource.model_validate(value) for name, value in self._assignment.inputs.items()}
        planned = []
        if sources:
            planned = await persistently(
                lambda: plan_inputs(workshop.pool, sources), what="plan_inputs", run_id=self._assignment.id
            )
        arrival = self.arrival
        try:
            totals = await workshop.in_thread(
                fetch_bundle, workshop.objects, self._artifact, directory.bundle, flag, arrival
            )
        finally:
            if arrival.first_byte_at is not None:
                self._note(first_byte_ms=_since(self._begun, arrival.first_byte_at))
        self._log.write(
            "system",
            f"verified and unpacked {totals.digest}: {totals.files} files, {totals.unpacked_bytes} bytes",
        )
        if planned:
            await workshop.in_thread(fetch_inputs, workshop.objects, planned, directory.inputs, flag, arrival)
        return [item.name for item in planned]

    async def _supervise(self, cell: Cell, voice: Voice, start: dict[str, Any]) -> Outcome:
        settings = self._settings
        patience = Patience(self._timeout_seconds, settings.abort_seconds, settings.kill_seconds)
        self._workshop.cells.refill()  # while the handler is at work, or waits for something
        meter = Meter(cell.process.ancestor, cell.directory, self._limits)
        begun = time.monotonic()
        reporting = asyncio.create_task(self._report(voice, begun))
        try:
            return await supervise(cell.process, voice, self._interrupts, meter, patience, start)
        finally:
            reporting.cancel()
            await asyncio.gather(reporting, return_exceptions=True)
            if voice.progressed.is_set():
                await self._store_progress(voice)
            if voice.started_at is not None:
                handler_ms = _since(voice.started_at, voice.ended_at)
                self._note(start_ms=_since(begun, voice.started_at), handler_ms=handler_ms)

    async def _report(self, voice: Voice, begun: float) -> None:
        """Keep the run's row up to date while the handler is at work."""
        run = self._assignment
        await voice.has_started.wait()
        self._note(start_ms=_since(begun, voice.started_at))
        await asyncio.sleep(_SHOWN_AFTER_SECONDS)  # many handlers have returned before anybody could look
        async with best_effort("mark_running", run.id), self._workshop.pool.acquire() as connection:
            await store.mark_running(connection, run.id, run.lease, self.timings)
        while True:
            await voice.progressed.wait()
            await self._store_progress(voice)
            await asyncio.sleep(_PROGRESS_SECONDS)

    async def _store_progress(self, voice: Voice) -> None:
        run = self._assignment
        voice.progressed.clear()
        fraction, message = voice.latest_progress or (None, None)
        try:
            async with best_effort("set_progress", run.id), self._workshop.pool.acquire() as connection:
                await store.set_progress(connection, run.id, run.lease, fraction, message)
        except asyncio.CancelledError:
            voice.progressed.set()  # the handler ended meanwhile: what it said last is stored then
            raise

    async def _collect(self, directory: Path) -> list[Output]:
        """Upload what the run left; its outputs are those of the attempt that succeeds."""
        begun = time.monotonic()
        workshop, run = self._workshop, self._assignment
        limits = OutputLimits(self._settings.max_outputs, self._settings.max_output_bytes)
        found = await workshop.in_thread(find_outputs, directory, limits)
        if found.skipped:
            shown = self._mask.text(", ".join(clean_text(path, 100) for path in sorted(found.skipped)[:_SHOWN_PATHS]))
            self._log.write(
                "system",
                f"{len(found.skipped)} outputs were left out, since they are no regular files: {shown}",
                level="warning",
            )
        uploads = Uploads(workshop.pool, workshop.objects, workshop.threads)
        outputs = await uploads.put(run, directory, found.files, self._interrupts.loss_flag)
        self._note(upload_ms=_since(begun))
        return outputs

    def _note(self, **timings: int) -> None:
        self.timings = replace(self.timings, **timings)


def _since(begun: float, until: float | None = None) -> int:
    """Milliseconds from `begun` until then, or until now."""
    return round(((time.monotonic() if until is None else until) - begun) * 1000)
