"""Bringing in what a run needs: its bundle, and outputs of other runs as its inputs. All of it from the bucket."""

import errno
import hashlib
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from libs.common.archive import ArchiveError
from libs.common.database import Pool
from libs.common.models import Artifact, InputSource
from libs.common.object_errors import ObjectMissing, ObjectStoreUnavailable
from libs.common.objects import ObjectStore
from services.runner.endings import AttemptInterrupted, RunFailed
from services.runner.extraction import (
    ExtractionCancelledError,
    ExtractionError,
    ExtractionTotals,
    IntegrityError,
    extract_stream,
)
from services.runner.output_store import RecordedOutput, get_output, outputs_below


@dataclass(slots=True)
class Arrival:
    """What has come of the bucket, and when it began. Written by the thread that fetches, read when that is over."""

    first_byte_at: float | None = None
    received_bytes: int = 0

    def noted(self, chunks: Iterable[bytes]) -> Iterator[bytes]:
        """The same chunks, counted as they pass."""
        for chunk in chunks:
            if self.first_byte_at is None:
                self.first_byte_at = time.monotonic()
            self.received_bytes += len(chunk)
            yield chunk


def fetch_bundle(
    objects: ObjectStore, artifact: Artifact, destination: Path, interrupted: threading.Event, arrival: Arrival
) -> ExtractionTotals:
    """Unpack the artifact's object below `destination`. Nothing of it may be used unless this returns. Blocks.

    Raises RunFailed, or AttemptInterrupted.
    """
    try:
        with objects.read(artifact.object_key) as body:
            return extract_stream(
                arrival.noted(body),
                destination,
                expected_digest=artifact.digest,
                expected_size=artifact.size,
                cancelled=interrupted,
            )
    except ObjectMissing:
        raise RunFailed(
            "object_missing",
            f"The bucket has no object {artifact.object_key}, which is the bundle. Publish the bundle again, which "
            "repairs it.",
        ) from None
    except ObjectStoreUnavailable as error:
        raise RunFailed("object_store_unavailable", f"The bundle could not be fetched: {error.message}.") from error
    except IntegrityError as error:
        raise RunFailed("integrity", f"{error} Nothing of it was executed.") from error
    except ArchiveError as error:
        raise RunFailed("archive_refused", str(error)) from error
    except ExtractionError as error:
        raise RunFailed("extraction_failed", str(error)) from error
    except ExtractionCancelledError:
        raise AttemptInterrupted from None


@dataclass(frozen=True, slots=True)
class PlannedInput:
    """One input: the outputs that make it up, and where each goes, relative to `inputs/<name>`."""

    name: str
    run_id: str
    is_directory: bool
    files: list[tuple[RecordedOutput, str]]


async def plan_inputs(pool: Pool, sources: Mapping[str, InputSource]) -> list[PlannedInput]:
    """What the inputs of a run consist of. RunFailed where one is missing that is not optional."""
    planned = []
    async with pool.acquire() as connection:
        for name, source in sources.items():
            run_id = source.run or ""
            if source.path.endswith("/"):
                prefix = source.path.lstrip("/")
                found = await outputs_below(connection, run_id, prefix)
                files = [(output, output.path.removeprefix(prefix)) for output in found]
            else:
                output = await get_output(connection, run_id, source.path)
                files = [(output, "")] if output else []
            if files:
                planned.append(PlannedInput(name, run_id, source.path.endswith("/"), files))
            elif not source.optional:
                raise RunFailed(
                    "input_missing",
                    f"input {name} is missing: run {run_id} has no output {source.path}. Check the path with "
                    f"GET /runs/{run_id}/outputs; only a run that succeeded has outputs.",
                )
    return planned


def fetch_inputs(
    objects: ObjectStore,
    planned: Iterable[PlannedInput],
    directory: Path,
    interrupted: threading.Event,
    arrival: Arrival,
) -> None:
    """Write each input to `directory/<name>`, verified. Blocks."""
    for item in planned:
        root = directory / item.name
        for output, relative in item.files:
            if interrupted.is_set():
                raise AttemptInterrupted
            target = root / relative if item.is_directory else root
            target.parent.mkdir(parents=True, exist_ok=True)
            _fetch_output(objects, item, output, target, arrival)


def _fetch_output(
    objects: ObjectStore, item: PlannedInput, output: RecordedOutput, target: Path, arrival: Arrival
) -> None:
    try:
        with objects.read(output.object_key) as body, target.open("xb") as file:
            for chunk in verified(arrival.noted(body), output):
                file.write(chunk)
    except ObjectMissing as error:
        raise RunFailed(
            "input_missing",
            f"input {item.name} is missing: the bucket has lost the output {output.path} of run {item.run_id}. "
            "Run that again.",
        ) from error
    except ObjectStoreUnavailable as error:
        raise RunFailed(
            "object_store_unavailable", f"input {item.name} could not be fetched: {error.message}."
        ) from error
    except DamagedOutput as error:
        raise RunFailed("integrity", f"input {item.name}: {error}") from error
    except OSError as error:
        problem = "no space is left for the run's files" if error.errno == errno.ENOSPC else error.strerror
        raise RunFailed("input_unwritable", f"input {item.name} could not be written: {problem}.") from error


class DamagedOutput(Exception):
    """What the bucket has is not what the run left."""


def verified(chunks: Iterable[bytes], output: RecordedOutput) -> Iterator[bytes]:
    """The chunks of an output, the last one only when all of them have its length and digest; else DamagedOutput."""
    digest, size, held = hashlib.sha256(), 0, b""
    for chunk in chunks:
        digest.update(chunk)
        size += len(chunk)
        if held:
            yield held
        held = chunk
    if size != output.size or f"sha256:{digest.hexdigest()}" != output.digest:
        raise DamagedOutput(f"the object of the output {output.path} is not what the run left. Run it again.")
    if held:
        yield held
