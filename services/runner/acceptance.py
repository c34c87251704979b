"""Accepting runs: what was asked for is resolved, pinned and queued."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from libs.common import audit
from libs.common.audit import Origin
from libs.common.client import RegistryClient
from libs.common.database import Connection, Pool
from libs.common.errors import InvalidRequest, TooLarge
from libs.common.identifiers import new_id
from libs.common.models import InputSource, JobDefinition, Limits, Resolution, RunRequest
from libs.common.queue import enqueue_run
from services.runner.references import find_job, resolve_bundle
from services.runner.store import NewRun, RunRecord, get_run, insert_run
from services.runner.values import UnstorableValue, require_storable

_INPUT_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,99}")


@dataclass(frozen=True, slots=True)
class Template:
    """What all runs of one definition have in common: the bundle they are pinned to, and the job's part."""

    resolution: Resolution
    job: str | None
    definition: JobDefinition

    def run(self, parameters: Mapping[str, Any], inputs: Mapping[str, InputSource], origin: Origin) -> NewRun:
        """A run of it; parameters go over the job's defaults."""
        found = self.resolution
        return NewRun(
            id=new_id("run"),
            slug=found.slug,
            version=found.version,
            revision=found.revision,
            digest=found.artifact.digest,
            artifact=found.artifact.model_dump(mode="json", by_alias=True),
            job=self.job,
            workflow_run_id=None,
            step=None,
            parameters={**self.definition.parameters, **parameters},
            inputs={name: source.model_dump(by_alias=True) for name, source in inputs.items()},
            limits=self.definition.limits.model_dump(by_alias=True),
            secrets=list(dict.fromkeys(self.definition.secrets)),
            retry=self.definition.retry.model_dump(mode="json", by_alias=True),
            max_attempts=self.definition.retry.attempts,
            created_by=origin.actor,
            request_id=origin.request_id,
        )


class Acceptance:
    """Takes requests for runs."""

    def __init__(self, pool: Pool, registry: RegistryClient, *, max_parameters_bytes: int) -> None:
        self._pool = pool
        self._registry = registry
        self._max_parameters_bytes = max_parameters_bytes

    async def accept(self, request: RunRequest, origin: Origin) -> RunRecord:
        """Queue a run, pinned to a digest: what is published afterwards does not change what it executes."""
        check_inputs(request.inputs)
        template = await self._template(request)
        limits = template.definition.limits
        if request.timeout_seconds is not None:
            limits = limits.model_copy(update={"timeout_seconds": request.timeout_seconds})
        definition = template.definition.model_copy(update={"limits": limits})
        run = replace(template, definition=definition).run(request.parameters, request.inputs, origin)
        check_parameters(run.parameters, self._max_parameters_bytes)
        async with self._pool.acquire() as connection, connection.transaction():
            await queue_run(connection, run, origin)
            record = await get_run(connection, run.id)
        if record is None:
            raise LookupError(run.id)
        return record

    async def _template(self, request: RunRequest) -> Template:
        if (request.bundle is None) == (request.job is None):
            raise InvalidRequest(
                "name either a bundle (slug@version, slug@latest, slug@sha256:…) or a job, and not both."
            )
        if request.job is None:
            reference = request.bundle or ""
            definition = JobDefinition(bundle=reference, limits=Limits())
        else:
            definition = (await find_job(self._registry, request.job)).definition
            reference = definition.bundle
        return Template(await resolve_bundle(self._registry, reference), request.job, definition)


async def queue_run(connection: Connection, run: NewRun, origin: Origin) -> None:
    """Insert a run, its entry in the queue and the event, which are there together or not at all."""
    await insert_run(connection, run)
    await enqueue_run(connection, run.id)
    detail = {
        "bundle": f"{run.slug}@{run.version}",
        "revision": run.revision,
        "job": run.job,
        "workflowRun": run.workflow_run_id,
        "step": run.step,
    }
    event = audit.Event(
        "run.accepted",
        f"run/{run.id}",
        digest=run.digest,
        detail={key: value for key, value in detail.items() if value is not None},
    )
    await audit.append(connection, origin, event)


def check_parameters(parameters: Mapping[str, Any], max_bytes: int) -> None:
    """Raise unless `parameters` can be stored and are not larger than `max_bytes` as JSON."""
    try:
        size = require_storable(parameters)
    except UnstorableValue as error:
        raise InvalidRequest(f"the parameters can't be stored: {error}.") from None
    if size > max_bytes:
        raise TooLarge(
            f"the parameters are {size} bytes as JSON; the limit is {max_bytes}. Pass large data as inputs.",
            maxBytes=max_bytes,
        )


def check_inputs(inputs: Mapping[str, InputSource]) -> None:
    """Raise InvalidRequest unless each input has a name that can be a file's, and names a run."""
    for name, source in inputs.items():
        check_input_name(name)
        if source.step is not None or not source.run:
            raise InvalidRequest(f"input {name} must name the run whose output it is; “step” is for workflows.")
        try:
            require_storable([source.run, source.path])
        except UnstorableValue as error:
            raise InvalidRequest(f"input {name} can't be: {error}.") from None


def check_input_name(name: str) -> None:
    """Raise InvalidRequest unless `name` can be the name of a file in `inputs/`."""
    if not _INPUT_NAME.fullmatch(name):
        raise InvalidRequest(
            f"“{name[:100]}” can't be the name of an input: use up to 100 letters, digits, dots, hyphens and "
            "underscores, beginning with a letter, digit or underscore."
        )
