"""Definitions of jobs and workflows: kept as they are given, checked for what can be checked without running them."""

import re

from libs.common import audit
from libs.common.audit import Origin
from libs.common.database import Pool
from libs.common.errors import InvalidRequest, NotFound
from libs.common.identifiers import check_digest, check_slug, check_version
from libs.common.log import get_logger
from libs.common.models import JobDefinition, WorkflowDefinition
from services.registry.catalog import LATEST
from services.registry.store import definitions
from services.registry.store.definitions import Definition, Kind
from services.registry.workflow_graph import check_graph

_TEMPLATE = re.compile(r"\{\{(.*?)\}\}", re.DOTALL)
_PARAMETER = re.compile(r"\s*parameters(?:\.[A-Za-z0-9_-]+)+\s*")
_log = get_logger("registry")


async def put_job(pool: Pool, slug: str, job: JobDefinition, origin: Origin) -> tuple[bool, Definition]:
    """Create or update a job; whether it is new, and the job. The bundle need not be published yet."""
    _check_bundle_reference(job.bundle)
    _check_concurrency_key(job.concurrency_key or "")
    return await _put(pool, Kind.JOB, check_slug(slug), job, origin)


async def put_workflow(pool: Pool, slug: str, workflow: WorkflowDefinition, origin: Origin) -> tuple[bool, Definition]:
    """Create or update a workflow; whether it is new, and the workflow. Its jobs need not be defined yet."""
    check_graph(workflow)
    for step in workflow.steps:
        check_slug(step.job)
    return await _put(pool, Kind.WORKFLOW, check_slug(slug), workflow, origin)


async def get(pool: Pool, kind: Kind, slug: str) -> Definition:
    """The job or workflow, or NotFound."""
    async with pool.acquire() as connection:
        found = await definitions.get(connection, kind, check_slug(slug))
    if found is None:
        raise NotFound(f"there is no {kind} {slug}. GET /{kind}s lists what there is.", kind=f"{kind}-not-found")
    return found


async def list_page(
    pool: Pool, kind: Kind, readable: list[str] | None, *, after: str | None, limit: int
) -> list[Definition]:
    """Jobs or workflows by slug, of those that match a pattern of `readable`, or of all."""
    async with pool.acquire() as connection:
        return await definitions.list_page(connection, kind, readable, after=after, limit=limit)


async def _put(
    pool: Pool, kind: Kind, slug: str, definition: JobDefinition | WorkflowDefinition, origin: Origin
) -> tuple[bool, Definition]:
    document = definition.model_dump(mode="json", by_alias=True)
    async with pool.acquire() as connection, connection.transaction():
        created = await definitions.put(connection, kind, slug, document, actor=origin.actor)
        kept = await definitions.get(connection, kind, slug)
        if kept is None:
            raise RuntimeError(f"the {kind} {slug} is gone in the transaction that wrote it")
        if created is not None:
            await audit.append(
                connection,
                origin,
                audit.Event(
                    f"{kind}.{'created' if created else 'updated'}",
                    f"{kind}/{slug}",
                    detail={"revision": kept.revision},
                ),
            )
    if created is not None:
        _log.info(f"{kind}_defined", slug=slug, revision=kept.revision, actor=origin.actor)
    return created is True, kept


def _check_concurrency_key(template: str) -> None:
    for reference in _TEMPLATE.findall(template):
        if not _PARAMETER.fullmatch(reference):
            raise InvalidRequest(
                f"the concurrency key has “{{{{{reference[:100]}}}}}”, but only parameters of the run are known: write "
                "{{ parameters.name }}.",
                kind="invalid-concurrency-key",
            )


def _check_bundle_reference(reference: str) -> None:
    slug, separator, wanted = reference.partition("@")
    if not separator:
        raise InvalidRequest(
            f"“{reference[:140]}” is no bundle reference: use slug@latest, slug@1.2.0 or slug@sha256:…",
            kind="invalid-reference",
        )
    check_slug(slug)
    if wanted.startswith("sha256:"):
        check_digest(wanted)
    elif wanted != LATEST:
        check_version(wanted)
