"""Publishing over HTTP: the tarball as a streamed body, or in the older JSON body."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AbstractContextManager

from aiohttp import hdrs, web
from pydantic import Field

from libs.common import models
from libs.common.api import Answer, Content, operation
from libs.common.auth import Scope
from libs.common.idempotency import IDEMPOTENCY_ERRORS, IDEMPOTENCY_KEY, once
from libs.common.identifiers import check_digest, check_slug, check_version
from libs.common.problem_types import ARCHIVE_KINDS
from libs.common.reading import parse_model, read_body, require_json
from libs.common.web import PRINCIPAL, json_response, origin_of
from services.registry import catalog, legacy
from services.registry.body import chunks_of_body
from services.registry.incoming import Announced
from services.registry.limits import Upload
from services.registry.publication import Published
from services.registry.resources import POOL, PUBLISHER, SETTINGS, UPLOADS
from services.registry.verdict import Outcome, Proposal

_TARBALL = Content(
    ("application/gzip", "application/zstd", "application/octet-stream"),
    "The tarball, compressed with gzip or zstd, with a `manifest.json` at its root. Its bytes say which it is.",
)
_REFUSALS = [
    "body-stalled",
    "body-damaged",
    "reason-required",
    "version-exists",
    "version-immutable",
    "bundle-immutable",
    "version-quarantined",
    "platform-not-allowed",
    "artifact-lost",
    *ARCHIVE_KINDS,
    "invalid-manifest",
    "manifest-mismatch",
    "entry-missing",
    "too-many-uploads",
    "upload-quota-exceeded",
]


_NO_ARTIFACT = ["artifact-not-found", "artifact-collected", "artifact-quarantined"]


class PublishQuery(models.Request):
    """How to publish. Unknown parameters are refused: a mistyped one would lose its protection."""

    force: bool = Field(default=False, description="Replace what is published, if its content differs.")
    expected_digest: str | None = Field(None, description="What is replaced, as the publisher believes; else 412.")
    reason: str | None = Field(None, max_length=1000, description="Why it is replaced; needed with `force`.")
    build_id: str | None = Field(None, pattern=r"^[A-Za-z0-9._:-]{1,100}$", description="The build that made it.")
    digest: str | None = Field(
        None, description="The digest of the body; with an empty body, of an artifact that the registry has."
    )


@operation(
    Scope.BUNDLES_PUBLISH,
    body=_TARBALL,
    answers={
        200: Answer(models.Version, "Replaced; or nothing has changed, because it has this content already."),
        201: Answer(models.Version, "The version is new."),
    },
    errors=[*_REFUSALS, *_NO_ARTIFACT, "digest-mismatch", "stale-digest"],
)
async def publish(request: web.Request, query: PublishQuery) -> web.Response:
    """Publish a version.

    What is published stays as it is, unless `force` is given by a token with the scope `bundles:force`, and a `reason`.
    With its `digest` the tarball is checked against it and stored sooner; and one that the registry has need not be
    sent again: the body is empty then, and the token needs `bundles:read` as well.
    """
    proposal = Proposal(
        check_slug(request.match_info["slug"]),
        check_version(request.match_info["version"]),
        force=query.force,
        expected_digest=check_digest(query.expected_digest) if query.expected_digest is not None else None,
        reason=(query.reason or "").strip() or None,
        build_id=query.build_id,
    )
    digest = check_digest(query.digest) if query.digest is not None else None
    with _admitted(request) as upload:
        chunks = upload.counted(_body(request))
        first = await anext(chunks, b"")
        if digest is not None and not first:
            published = await _publish_stored(request, proposal, digest)
        else:
            announced = Announced(digest, _announced_bytes(request))
            published = await _publish(request, proposal, _again(first, chunks), announced)
    status = 201 if published.outcome is Outcome.CREATED else 200
    return json_response(models.Version.model_validate(published.version), status=status)


@operation(
    Scope.BUNDLES_PUBLISH,
    by_slug=True,
    body=models.LegacyPublish,
    answers={
        200: Answer(models.LegacyAnswer, "Nothing has changed: it has this content already."),
        201: Answer(models.LegacyAnswer, "The version is new, or has been replaced."),
    },
    errors=[*_REFUSALS, "invalid-base64", "checksum-mismatch", *IDEMPOTENCY_ERRORS],
    headers=[IDEMPOTENCY_KEY],
)
async def publish_json(request: web.Request) -> web.Response:
    """Publish a version in a JSON body: the older way.

    The tarball is base64, standard or URL-safe, or a data URL. What is wrong with it is 400.
    """
    require_json(request)
    with _admitted(request) as upload:
        settings = request.app[SETTINGS]
        setting = settings.variable("max_json_publish_bytes")
        body = await read_body(request, max_bytes=settings.max_json_publish_bytes, setting=setting)
        upload.charge(len(body))
    # To publish again what is published changes nothing: it need not be concluded with the publication.
    return await once(request, body, lambda _claim: _publish_json(request, body))


async def _publish_json(request: web.Request, body: bytes) -> web.Response:
    parsed = await asyncio.to_thread(parse_model, body, models.LegacyPublish)
    request[PRINCIPAL].require(Scope.BUNDLES_PUBLISH, parsed.slug)
    proposal = legacy.read_proposal(parsed)
    data = await asyncio.to_thread(legacy.decode_artifact, parsed.artifact)
    with legacy.refusals():
        published = await _publish(request, proposal, legacy.chunks_of(data), Announced())
    bundle = await catalog.get_bundle(request.app[POOL], proposal.slug)
    answer = models.LegacyAnswer(
        data=models.LegacyPublished(
            bundle=models.Bundle.model_validate(bundle), version=models.Version.model_validate(published.version)
        )
    )
    return json_response(answer, status=200 if published.outcome is Outcome.IDENTICAL else 201)


async def _publish(
    request: web.Request, proposal: Proposal, chunks: AsyncIterator[bytes], announced: Announced
) -> Published:
    return await request.app[PUBLISHER].publish(proposal, chunks, request[PRINCIPAL], origin_of(request), announced)


async def _publish_stored(request: web.Request, proposal: Proposal, digest: str) -> Published:
    return await request.app[PUBLISHER].publish_stored(proposal, digest, request[PRINCIPAL], origin_of(request))


def _admitted(request: web.Request) -> AbstractContextManager[Upload]:
    return request.app[UPLOADS].admitted(request[PRINCIPAL], request.content_length)


def _body(request: web.Request) -> AsyncIterator[bytes]:
    settings = request.app[SETTINGS]
    return chunks_of_body(request, settings)


def _announced_bytes(request: web.Request) -> int | None:
    """The length of the body that is to come, unless it is encoded on the way: then it is not that of the tarball."""
    return None if hdrs.CONTENT_ENCODING in request.headers else request.content_length


async def _again(first: bytes, chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """`chunks`, of which `first` was taken already."""
    if first:
        yield first
    async for chunk in chunks:
        yield chunk


ROUTES = (
    web.put("/job-bundles/{slug}/versions/{version}", publish),
    web.post("/job-bundles", publish_json),
)
