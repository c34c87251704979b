"""Accepting runs: what was asked for is resolved, pinned and queued."""

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from libs.common import audit
from libs.common.audit import Origin
from libs.common.auth import Principal, Scope
from libs.common.client import RegistryClient
from libs.common.database import Connection, Pool
from libs.common.errors import InvalidRequest, TooLarge
from libs.common.idempotency import Conclude, nothing
from libs.common.identifiers import new_id
from libs.common.models import InputSource, JobDefinition, Limits, Resolution, RunRequest
from libs.common.queue import enqueue_run
from services.runner.references import find_job, resolve_bundle
from services.runner.standing import Standing
from services.runner.store import NewRun, RunRecord, get_run, insert_run
from services.runner.templates import TemplateError, render
from services.runner.turn_store import lock_scope
from services.runner.turns import Backlog, Turns, require_room_of_job
from services.runner.values import UnstorableValue, require_storable

_MAX_KEY_LENGTH = 200
_INPUT_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,99}")


@dataclass(frozen=True, slots=True)
class Template:
    """What all runs of one definition have in common: the bundle they are pinned to, and the job's part."""

    resolution: Resolution
    job: str | None
    definition: JobDefinition

    @property
    def scope(self) -> str:
        """Among which runs a concurrency key means the same, and those that go at a time are counted."""
        return f"bundle/{self.resolution.slug}" if self.job is None else f"job/{self.job}"

    def run(
        self,
        parameters: Mapping[str, Any],
        inputs: Mapping[str, InputSource],
        origin: Origin,
        *,
        concurrency_key: str | None = None,
    ) -> NewRun:
        """A run of it; parameters go over the job's defaults, and so does the key. TemplateError for a key of the job
        that can't be made of the parameters.
        """
        found, merged = self.resolution, {**self.definition.parameters, **parameters}
        if concurrency_key is None and self.definition.concurrency_key is not None:
            concurrency_key = _render_key(self.definition.concurrency_key, merged)
        max_running = self.definition.queue.max_running
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
            parameters=merged,
            inputs={name: source.model_dump(by_alias=True) for name, source in inputs.items()},
            limits=self.definition.limits.model_dump(by_alias=True),
            secrets=list(dict.fromkeys(self.definition.secrets)),
            retry=self.definition.retry.model_dump(mode="json", by_alias=True),
            max_attempts=self.definition.retry.attempts,
            priority=self.definition.priority,
            concurrency_key=concurrency_key,
            max_running=max_running,
            turn_scope=None if concurrency_key is None and max_running is None else self.scope,
            created_by=origin.actor,
            request_id=origin.request_id,
        )


class Acceptance:
    """Takes requests for runs."""

    def __init__(
        self,
        pool: Pool,
        registry: RegistryClient,
        standing: Standing,
        turns: Turns,
        backlog: Backlog,
        *,
        max_parameters_bytes: int,
    ) -> None:
        self._pool = pool
        self._registry = registry
        self._standing = standing
        self._turns = turns
        self._backlog = backlog
        self._max_parameters_bytes = max_parameters_bytes

    async def accept(
        self, request: RunRequest, principal: Principal, origin: Origin, *, conclude: Conclude[RunRecord] = nothing
    ) -> RunRecord:
        """Queue a run, pinned to a digest: what is published afterwards does not change what it executes.

        TooManyRequests when there is no room in the queue. Forbidden unless the principal may run what is named, and
        the bundle that it comes to.
        """
        require_named(request, principal)
        check_inputs(request.inputs)
        await self._backlog.require_room()
        template = await self._template(request, principal)
        try:
            run = template.run(request.parameters, request.inputs, origin, concurrency_key=request.concurrency_key)
        except TemplateError as error:
            raise InvalidRequest(str(error), kind="invalid-concurrency-key") from None
        check_parameters(run.parameters, self._max_parameters_bytes)
        record = await self._queue(run, template, origin, conclude)
        if run.turn_scope is not None:
            await self._turns.give([run.turn_scope])
        return record

    async def _queue(self, run: NewRun, template: Template, origin: Origin, conclude: Conclude[RunRecord]) -> RunRecord:
        max_queued = template.definition.queue.max_queued
        async with self._pool.acquire() as connection, connection.transaction():
            if run.job is not None and max_queued is not None:
                await lock_scope(connection, template.scope)
                await require_room_of_job(connection, run.job, max_queued)
            await queue_run(connection, run, origin)
            record = await get_run(connection, run.id)
            if record is None:
                raise LookupError(run.id)
            await conclude(connection, record)
        return record

    async def _template(self, request: RunRequest, principal: Principal) -> Template:
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
        changes: dict[str, Any] = {}
        if request.priority is not None:
            changes["priority"] = request.priority
        if request.timeout_seconds is not None:
            changes["limits"] = definition.limits.model_copy(update={"timeout_seconds": request.timeout_seconds})
        allow_yanked = request.allow_yanked or definition.allow_yanked
        resolution = await resolve_bundle(self._standing, reference, principal, allow_yanked=allow_yanked)
        return Template(resolution, request.job, definition.model_copy(update=changes))


async def queue_run(connection: Connection, run: NewRun, origin: Origin) -> None:
    """Insert a run, its entry in the queue and the event, which are there together or not at all.

    A run with a `turn_scope` comes up only when it is given its turn, after the transaction.
    """
    await insert_run(connection, run)
    await enqueue_run(connection, run.id, priority=run.priority, waits=run.turn_scope is not None)
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


def require_named(request: RunRequest, principal: Principal) -> None:
    """Raise Forbidden unless the principal may run what the request names, and read what its inputs are from.

    To be asked before anything is looked up: whether there is such a bundle or job is not for everybody to know.
    """
    for name in (request.job, (request.bundle or "").partition("@")[0] or None):
        if name is not None:
            principal.require(Scope.RUNS_WRITE, name)
    require_inputs_readable(request.inputs.values(), principal)


def require_inputs_readable(inputs: Iterable[InputSource], principal: Principal) -> None:
    """Raise Forbidden where inputs come from runs by id, which may be of any bundle, and the principal, whose token is
    for some slugs only, may not read runs.
    """
    if not principal.may(Scope.RUNS_WRITE) and any(source.run is not None for source in inputs):
        principal.require(Scope.RUNS_READ)


def _render_key(template: str, parameters: Mapping[str, Any]) -> str:
    value = render(template, {"parameters": parameters})
    key = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    if value is None or not 0 < len(key) <= _MAX_KEY_LENGTH:
        raise TemplateError(
            f"the concurrency key “{template}” is {key[:100] or 'empty'} with these parameters; it must be a text of "
            f"up to {_MAX_KEY_LENGTH} characters."
        )
    return key


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
