"""One attempt at a run: check, make room, start the interpreter, fetch, verify, execute, collect."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Executor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from libs.common.database import Pool
from libs.common.journal import JournalWriter
from libs.common.manifest import Manifest
from libs.common.models import Artifact, InputSource, Limits, Output, RunState
from libs.common.objects import ObjectStore
from services.runner import store
from services.runner.compatibility import Runtimes, read_runnable_manifest, require_platform, require_runtime
from services.runner.endings import AttemptInterrupted, Outcome, RunFailed
from services.runner.events import EVENT_OVERHEAD_BYTES, dispatch
from services.runner.fetching import Arrival, fetch_bundle, fetch_inputs, plan_inputs
from services.runner.interrupts import Interrupts
from services.runner.outputs import OutputLimits, find_outputs
from services.runner.persistence import best_effort, persistently
from services.runner.process import JobProcess, Listeners, ProcessLimits
from services.runner.scratch import RunDirectory, Scratch
from services.runner.settings import RunnerSettings
from services.runner.store import Assignment, Timings
from services.runner.supervision import Patience, Voice, supervise
from services.runner.uploads import Uploads
from services.runner.values import clean_text

_HARNESSES = Path(__file__).parent / "harness"
_SYSTEM_PATH = "/usr/local/bin:/usr/bin:/bin"
_PROGRESS_SECONDS = 0.25
_SHOWN_PATHS = 5
_V8_RESERVE_BYTES = 768 * 1024 * 1024
"""Writable address space that V8 reserves for compiled code and thread stacks, and does not use."""

Value = TypeVar("Value")


@dataclass(frozen=True, slots=True)
class Workshop:
    """What every attempt of this runner works with."""

    settings: RunnerSettings
    pool: Pool
    objects: ObjectStore
    scratch: Scratch
    runtimes: Runtimes
    threads: Executor

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
        self._limits = Limits.model_validate(assignment.limits)
        self._log = log
        self._interrupts = interrupts
        self._begun = time.monotonic()
        self.timings = Timings()
        self.arrival = Arrival()

    async def execute(self) -> Outcome:
        """See the run through. The directory is gone when this returns or raises AttemptInterrupted."""
        try:
            manifest = read_runnable_manifest(self._artifact)
            if self._settings.platform_check:
                require_platform(self._artifact.native)
            require_runtime(manifest, self._workshop.runtimes)
            async with self._directory() as directory:
                return await self._execute_in(directory, manifest)
        except RunFailed as error:
            return Outcome.failed(error.kind, str(error), log_tail=error.log_tail)

    @contextlib.asynccontextmanager
    async def _directory(self) -> AsyncIterator[RunDirectory]:
        name = f"{self._assignment.id}-{self._assignment.attempts}"
        context = self._workshop.scratch.run_directory(name, needed_bytes=self._artifact.unpacked_size)
        try:
            directory = await self._workshop.in_thread(context.__enter__)
        except OSError as error:
            raise RunFailed("scratch", f"The run's directory could not be made: {error.strerror}.") from error
        try:
            yield directory
        finally:
            begun = time.monotonic()
            await asyncio.shield(self._workshop.in_thread(context.__exit__, None, None, None))
            self._note(remove_ms=_since(begun))

    async def _execute_in(self, directory: RunDirectory, manifest: Manifest) -> Outcome:
        voice = Voice(self._log)
        process = await self._start(directory, manifest, voice)
        try:
            inputs = await self._fetch(directory)
            entry = directory.bundle / manifest.entry
            if not entry.is_file():
                raise RunFailed("entry_missing", f"The bundle has no file {manifest.entry}, which its manifest names.")
            self._note(fetch_ms=_since(self._begun))
            if self._interrupts.reason is not None:
                raise AttemptInterrupted
            outcome = await self._supervise(process, voice, self._start_message(directory, entry, inputs))
        finally:
            await process.close()
        if outcome.state is RunState.SUCCEEDED:
            outcome = replace(outcome, outputs=await self._collect(directory.outputs))
        return outcome

    async def _start(self, directory: RunDirectory, manifest: Manifest, voice: Voice) -> JobProcess:
        settings = self._settings
        memory = self._limits.memory_bytes or settings.memory_bytes
        runtimes = self._workshop.runtimes
        if manifest.language == "node":
            interpreter, data_bytes = runtimes.node, memory + _V8_RESERVE_BYTES
            options = [f"--max-old-space-size={max(16, memory * 3 // 4 // 1024**2)}", str(_HARNESSES / "node.mjs")]
        else:
            interpreter, data_bytes = runtimes.python, memory
            options = ["-I", "-S", "-X", "utf8", str(_HARNESSES / "python.py")]
        try:
            return await JobProcess.start(
                [str(interpreter), *options],
                directory=directory.bundle,
                environment=self._environment(directory, interpreter),
                marker=directory.marker,
                limits=ProcessLimits(
                    data_bytes=data_bytes,
                    processes=self._limits.processes or settings.processes,
                    file_bytes=settings.file_bytes if self._limits.file_bytes is None else self._limits.file_bytes,
                    open_files=settings.open_files,
                ),
                listeners=Listeners(
                    stdout=lambda line: voice.output("stdout", line),
                    stderr=lambda line: voice.output("stderr", line),
                    event=lambda line: dispatch(line, voice, max_result_bytes=settings.max_result_bytes),
                ),
                max_event_bytes=settings.max_result_bytes + EVENT_OVERHEAD_BYTES,
            )
        except OSError as error:
            raise RunFailed("not_started", f"{interpreter.name} could not be started: {error.strerror}.") from error

    def _environment(self, directory: RunDirectory, interpreter: Path) -> dict[str, str]:
        """All that a job sees of the world. Nothing of the runner's own environment is in it."""
        run = self._assignment
        return {
            "PATH": f"{interpreter.parent}:{_SYSTEM_PATH}",
            "HOME": str(directory.home),
            "TMPDIR": str(directory.tmp),
            "LANG": "C.UTF-8",
            "TZ": "UTC",
            "NODE_ENV": "production",
            "STOWAGE_RUN_ID": run.id,
            "STOWAGE_RUN_ATTEMPT": str(run.attempts),
            "STOWAGE_BUNDLE": f"{run.slug}@{run.version}",
            "STOWAGE_BUNDLE_DIGEST": run.digest,
        }

    def _start_message(self, directory: RunDirectory, entry: Path, inputs: dict[str, str]) -> dict[str, Any]:
        run = self._assignment
        return {
            "entry": str(entry),
            "root": str(directory.bundle),
            "parameters": run.parameters,
            "maxResultBytes": self._settings.max_result_bytes,
            "context": {
                "inputs": inputs,
                "outputDir": str(directory.outputs),
                "workDir": str(directory.tmp),
                "run": {
                    "id": run.id,
                    "attempt": run.attempts,
                    "bundle": f"{run.slug}@{run.version}",
                    "digest": run.digest,
                },
            },
        }

    async def _fetch(self, directory: RunDirectory) -> dict[str, str]:
        """Bring in bundle and inputs. When this returns, all of it was verified."""
        workshop, flag = self._workshop, self._interrupts.flag
        sources = {name: InputSource.model_validate(value) for name, value in self._assignment.inputs.items()}
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
        return await workshop.in_thread(fetch_inputs, workshop.objects, planned, directory.inputs, flag, arrival)

    async def _supervise(self, process: JobProcess, voice: Voice, start: dict[str, Any]) -> Outcome:
        settings = self._settings
        patience = Patience(
            self._limits.timeout_seconds or settings.timeout_seconds, settings.abort_seconds, settings.kill_seconds
        )
        begun = time.monotonic()
        reporting = asyncio.create_task(self._report(voice, begun))
        try:
            return await supervise(process, voice, self._interrupts, patience, start)
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
        async with best_effort("set_progress", run.id), self._workshop.pool.acquire() as connection:
            await store.set_progress(connection, run.id, run.lease, fraction, message)

    async def _collect(self, directory: Path) -> list[Output]:
        """Upload what the run left; its outputs are those of the attempt that succeeds."""
        begun = time.monotonic()
        workshop, run = self._workshop, self._assignment
        limits = OutputLimits(self._settings.max_outputs, self._settings.max_output_bytes)
        found = await workshop.in_thread(find_outputs, directory, limits)
        if found.skipped:
            shown = ", ".join(clean_text(path, 100) for path in sorted(found.skipped)[:_SHOWN_PATHS])
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
