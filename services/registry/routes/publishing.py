"""Publishing over HTTP: the tarball as a streamed body, or in the older JSON body."""

import asyncio
from collections.abc import AsyncIterator

from aiohttp import web
from pydantic import Field

from libs.common import models
from libs.common.auth import Scope
from libs.common.identifiers import check_digest, check_slug, check_version
from libs.common.web import PRINCIPAL, json_response, origin_of, parse_model, read_body, read_query, requires
from services.registry import catalog, legacy
from services.registry.body import chunks_of_body
from services.registry.publication import Published
from services.registry.resources import POOL, PUBLISHER, SETTINGS
from services.registry.verdict import Outcome, Proposal


class _PublishQuery(models.Request):
    """The query string of a publication. Unknown parameters are refused: a mistyped one would lose its protection."""

    force: bool = False
    expected_digest: str | None = None
    reason: str | None = Field(None, max_length=1000)
    build_id: str | None = Field(None, pattern=r"^[A-Za-z0-9._:-]{1,100}$")


@requires(Scope.BUNDLES_PUBLISH)
async def publish(request: web.Request) -> web.Response:
    """PUT /job-bundles/{slug}/versions/{version}"""
    query = read_query(request, _PublishQuery)
    proposal = Proposal(
        check_slug(request.match_info["slug"]),
        check_version(request.match_info["version"]),
        force=query.force,
        expected_digest=check_digest(query.expected_digest) if query.expected_digest is not None else None,
        reason=(query.reason or "").strip() or None,
        build_id=query.build_id,
    )
    published = await _publish(request, proposal, _body(request))
    status = 201 if published.outcome is Outcome.CREATED else 200
    return json_response(models.Version.model_validate(published.version), status=status)


@requires(Scope.BUNDLES_PUBLISH)
async def publish_json(request: web.Request) -> web.Response:
    """POST /job-bundles"""
    body = await read_body(request, max_bytes=request.app[SETTINGS].max_json_publish_bytes)
    parsed = await asyncio.to_thread(parse_model, body, models.LegacyPublish)
    del body
    proposal = legacy.read_proposal(parsed)
    data = await asyncio.to_thread(legacy.decode_artifact, parsed.artifact)
    with legacy.refusals():
        published = await _publish(request, proposal, legacy.chunks_of(data))
    bundle = await catalog.get_bundle(request.app[POOL], proposal.slug)
    answer = models.LegacyAnswer(
        data=models.LegacyPublished(
            bundle=models.Bundle.model_validate(bundle), version=models.Version.model_validate(published.version)
        )
    )
    return json_response(answer, status=200 if published.outcome is Outcome.IDENTICAL else 201)


async def _publish(request: web.Request, proposal: Proposal, chunks: AsyncIterator[bytes]) -> Published:
    return await request.app[PUBLISHER].publish(proposal, chunks, request[PRINCIPAL], origin_of(request))


def _body(request: web.Request) -> AsyncIterator[bytes]:
    settings = request.app[SETTINGS]
    return chunks_of_body(request, max_bytes=settings.max_artifact_bytes, idle_seconds=settings.body_idle_seconds)


ROUTES = (
    web.put("/job-bundles/{slug}/versions/{version}", publish),
    web.post("/job-bundles", publish_json),
)
