"""One attempt at a run: check, make room, start the interpreter, fetch, verify, execute, collect."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Mapping
from concurrent.futures import Executor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from libs.common.manifest import Manifest
from libs.common.models import Output, RunState
from libs.common.object_uploads import PART_BYTES
from services.runner.cells import Cell, CellKind, Cells
from services.runner.compatibility import (
    Runtimes,
    network_of,
    read_runnable_manifest,
    require_class,
    require_platform,
    require_runtime,
)
from services.runner.endings import AttemptInterrupted, Outcome, RunFailed
from services.runner.events import dispatch
from services.runner.fetching import Arrival, PlannedInput, fetch_bundle, fetch_inputs
from services.runner.holder import Holder, Order
from services.runner.limits import Rules
from services.runner.masking import Mask
from services.runner.memory import MemoryBudget
from services.runner.metering import Meter
from services.runner.outputs import OutputLimits, find_outputs
from services.runner.process import Listeners
from services.runner.sandbox.layers import Confinement
from services.runner.scratch import RunDirectory
from services.runner.store import Timings
from services.runner.supervision import Patience, Voice, supervise
from services.runner.uploads import upload_outputs
from services.runner.values import clean_text

_PROGRESS_SECONDS = 0.25
_SHOWN_PATHS = 5

Value = TypeVar("Value")


@dataclass(frozen=True, slots=True)
class Workshop:
    """What every attempt that is made here works with."""

    rules: Rules
    cells: Cells
    memory: MemoryBudget
    runtimes: Runtimes
    threads: Executor

    async def in_thread(self, work: Callable[..., Value], *arguments: Any) -> Value:
        """Do what blocks in a thread that no request waits for."""
        return await asyncio.get_running_loop().run_in_executor(self.threads, work, *arguments)


class Attempt:
    """One attempt, on behalf of whoever holds the lease of the run."""

    def __init__(self, workshop: Workshop, order: Order, holder: Holder) -> None:
        self._workshop = workshop
        self._rules = workshop.rules
        self._order = order
        self._holder = holder
        self._timeout_seconds = order.limits.timeout_seconds or self._rules.timeout_seconds
        self._limits = self._rules.limits_of(order.limits)
        self._log = holder.log
        self._interrupts = holder.interrupts
        self._mask = Mask()
        self._begun = time.monotonic()
        self._arrival = Arrival()
        self.timings = Timings()
        self.confinement: Confinement | None = None

    @property
    def received_bytes(self) -> int:
        """What has come of the bucket so far."""
        return self._arrival.received_bytes

    @property
    def handler_called(self) -> bool:
        """Whether the handler was called."""
        return self.timings.start_ms is not None

    async def execute(self) -> Outcome:
        """See the run through. The directory is gone when this returns or raises AttemptInterrupted."""
        try:
            manifest = read_runnable_manifest(self._order.artifact)
            require_class(self._order.limits.node_class, self._rules.node_classes)
            if self._rules.platform_check:
                require_platform(self._order.artifact.native)
            require_runtime(manifest, self._workshop.runtimes)
            async with self._cell(manifest) as cell:
                return await self._execute_in(cell, manifest)
        except RunFailed as error:
            return Outcome.failed(error.kind, self._mask.text(str(error)), log_tail=error.log_tail)

    @contextlib.asynccontextmanager
    async def _cell(self, manifest: Manifest) -> AsyncIterator[Cell]:
        network = network_of(manifest, allowed=self._rules.allow_network)
        kind = CellKind(manifest.language, network, self._limits)
        async with (
            self._workshop.memory.share(self._limits.memory_bytes, self._interrupts),
            self._cell_of(kind) as cell,
        ):
            yield cell

    @contextlib.asynccontextmanager
    async def _cell_of(self, kind: CellKind) -> AsyncIterator[Cell]:
        try:
            cell = await self._workshop.cells.take(kind, self._order.artifact.unpacked_size)
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

    async def _execute_in(self, cell: Cell, manifest: Manifest) -> Outcome:
        directory, process = cell.directory, cell.process
        provision = await self._holder.provide()
        self._mask = Mask(provision.secrets.values())
        voice = Voice(self._log, self._mask)
        await self._fetch(directory, provision.inputs)
        entry = directory.bundle / manifest.entry
        if not entry.is_file():
            raise RunFailed("entry_missing", f"The bundle has no file {manifest.entry}, which its manifest names.")
        self._note(fetch_ms=_since(self._begun))
        if self._interrupts.reason is not None:
            raise AttemptInterrupted
        maximum = self._rules.max_result_bytes
        process.attend(
            Listeners(
                stdout=lambda line: voice.output("stdout", line),
                stderr=lambda line: voice.output("stderr", line),
                event=lambda line: dispatch(line, voice, max_result_bytes=maximum),
            )
        )
        inputs = [item.name for item in provision.inputs]
        start = self._start_message(cell, manifest.entry, inputs, provision.secrets)
        outcome = await self._supervise(cell, voice, start)
        if outcome.state is RunState.SUCCEEDED:
            outcome = replace(outcome, outputs=await self._collect(directory.outputs))
        return outcome

    def _start_message(self, cell: Cell, entry: str, inputs: list[str], secrets: Mapping[str, str]) -> dict[str, Any]:
        order, inside = self._order, cell.interior
        return {
            "entry": f"{inside.bundle}/{entry}",
            "root": inside.bundle,
            "parameters": order.parameters,
            "secrets": dict(secrets),
            "maxResultBytes": self._rules.max_result_bytes,
            "environment": {
                "STOWAGE_RUN_ID": order.run_id,
                "STOWAGE_RUN_ATTEMPT": str(order.attempt),
                "STOWAGE_BUNDLE": f"{order.slug}@{order.version}",
                "STOWAGE_BUNDLE_DIGEST": order.digest,
            },
            "context": {
                "inputs": {name: f"{inside.inputs}/{name}" for name in inputs},
                "outputDir": inside.outputs,
                "workDir": inside.tmp,
                "run": {
                    "id": order.run_id,
                    "attempt": order.attempt,
                    "bundle": f"{order.slug}@{order.version}",
                    "digest": order.digest,
                },
            },
        }

    async def _fetch(self, directory: RunDirectory, inputs: list[PlannedInput]) -> None:
        """Bring in bundle and inputs. When this returns, all of it was verified."""
        workshop, objects, flag, arrival = self._workshop, self._holder.objects, self._interrupts.flag, self._arrival
        try:
            totals = await workshop.in_thread(
                fetch_bundle, objects, self._order.artifact, directory.bundle, flag, arrival
            )
        finally:
            if arrival.first_byte_at is not None:
                self._note(first_byte_ms=_since(self._begun, arrival.first_byte_at))
        self._log.write(
            "system",
            f"verified and unpacked {totals.digest}: {totals.files} files, {totals.unpacked_bytes} bytes",
        )
        if inputs:
            await workshop.in_thread(fetch_inputs, objects, inputs, directory.inputs, flag, arrival)

    async def _supervise(self, cell: Cell, voice: Voice, start: dict[str, Any]) -> Outcome:
        rules = self._rules
        patience = Patience(self._timeout_seconds, rules.abort_seconds, rules.kill_seconds)
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
                await self._tell_progress(voice)
            if voice.started_at is not None:
                handler_ms = _since(voice.started_at, voice.ended_at)
                self._note(start_ms=_since(begun, voice.started_at), handler_ms=handler_ms)

    async def _report(self, voice: Voice, begun: float) -> None:
        """Tell the holder while the handler is at work."""
        await voice.has_started.wait()
        self._note(start_ms=_since(begun, voice.started_at))
        await self._holder.started(self.timings, self.confinement)
        while True:
            await voice.progressed.wait()
            await self._tell_progress(voice)
            await asyncio.sleep(_PROGRESS_SECONDS)

    async def _tell_progress(self, voice: Voice) -> None:
        voice.progressed.clear()
        fraction, message = voice.latest_progress or (None, None)
        try:
            await self._holder.progressed(fraction, message)
        except asyncio.CancelledError:
            voice.progressed.set()  # the handler ended meanwhile: what it said last is told then
            raise

    async def _collect(self, directory: Path) -> list[Output]:
        """Upload what the run left; its outputs are those of the attempt that succeeds."""
        begun = time.monotonic()
        workshop = self._workshop
        limits = OutputLimits(self._rules.max_outputs, self._rules.max_output_bytes)
        found = await workshop.in_thread(find_outputs, directory, limits)
        if found.skipped:
            shown = self._mask.text(", ".join(clean_text(path, 100) for path in sorted(found.skipped)[:_SHOWN_PATHS]))
            self._log.write(
                "system",
                f"{len(found.skipped)} outputs were left out, since they are no regular files: {shown}",
                level="warning",
            )
        outputs: list[Output] = []
        if found.files:
            in_parts = any(output.size >= PART_BYTES for output in found.files)
            async with self._holder.uploading(in_parts=in_parts):
                outputs = await upload_outputs(
                    self._holder.objects,
                    workshop.threads,
                    self._order,
                    directory,
                    found.files,
                    lost=self._interrupts.loss_flag,
                )
        self._note(upload_ms=_since(begun))
        return outputs

    def _note(self, **timings: int) -> None:
        self.timings = replace(self.timings, **timings)


def _since(begun: float, until: float | None = None) -> int:
    """Milliseconds from `begun` until then, or until now."""
    return round(((time.monotonic() if until is None else until) - begun) * 1000)
