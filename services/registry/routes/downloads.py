"""Downloads: a redirect to the bucket, or the bytes themselves."""

import contextlib

from aiohttp import web
from pydantic import Field

from libs.common import models
from libs.common.api import Answer, Content, Header, operation
from libs.common.auth import Scope
from libs.common.web import send_stream
from services.registry import catalog
from services.registry.download import filename_of, opened, presign
from services.registry.placement import content_type_of
from services.registry.resources import OBJECTS, POOL, SETTINGS
from services.registry.standing import require_downloadable
from services.registry.store.versions import Version

_TARBALL = Content(("application/gzip", "application/zstd"), "The tarball.")
_ETAG = Header("ETag", "The digest of the artifact.", f'"sha256:{"9f" * 32}"')
_CONTENT_RANGE = Header("Content-Range", "Which bytes these are, of how many.", "bytes 0-1023/24000000")
_LOCATION = Header("Location", "A URL that needs no token, for a few minutes.", "https://bucket.example/artifacts/…")
_IF_NONE_MATCH = Header("If-None-Match", "Digests that the caller has: 304 for these.", f'"sha256:{"9f" * 32}"')
_RANGE = Header("Range", "Which bytes are wanted, with `stream`.", "bytes=0-1023")
_IF_RANGE = Header("If-Range", "The range is only wanted of this digest.", f'"sha256:{"9f" * 32}"')


class DownloadQuery(models.Request):
    """How to download."""

    stream: bool = Field(default=False, description="Send the bytes, instead of a redirect to them.")


@operation(
    Scope.BUNDLES_READ,
    answers={
        200: Answer(_TARBALL, "The bytes, with `stream`.", (_ETAG,)),
        206: Answer(_TARBALL, "Some of the bytes, with `stream`.", (_ETAG, _CONTENT_RANGE)),
        304: Answer(None, "The caller has it already.", (_ETAG,)),
        307: Answer(None, "Where the bytes are.", (_ETAG, _LOCATION)),
    },
    errors=[
        "bundle-not-found",
        "version-not-found",
        "version-quarantined",
        "range-not-satisfiable",
        "artifact-damaged",
        "artifact-quarantined",
    ],
    headers=[_IF_NONE_MATCH, _RANGE, _IF_RANGE],
)
async def download(request: web.Request, query: DownloadQuery) -> web.StreamResponse:
    """Download a version, or `latest`."""
    version = await catalog.get_version(request.app[POOL], request.match_info["slug"], request.match_info["version"])
    require_downloadable(version)
    await catalog.get_artifact(request.app[POOL], version.digest)  # refuses what is quarantined
    if any(tag.value in (version.digest, "*") for tag in request.if_none_match or ()):
        return web.Response(status=304, headers={"ETag": f'"{version.digest}"'})
    if request.method == "HEAD" or query.stream:
        return await _stream(request, version)
    url = await presign(request.app[OBJECTS], version, expires_seconds=request.app[SETTINGS].download_url_seconds)
    return web.Response(
        status=307, headers={"Location": url, "ETag": f'"{version.digest}"', "Cache-Control": "no-store"}
    )


async def _stream(request: web.Request, version: Version) -> web.StreamResponse:
    start, stop = _range(request, version)
    response = web.StreamResponse(
        status=206 if (start, stop) != (0, version.size) else 200,
        headers={
            "ETag": f'"{version.digest}"',
            "Accept-Ranges": "bytes",
            "Content-Type": content_type_of(version.compression),
            "Content-Disposition": f'attachment; filename="{filename_of(version)}"',
        },
    )
    response.content_length = stop - start
    if response.status == 206:
        response.headers["Content-Range"] = f"bytes {start}-{stop - 1}/{version.size}"
    if request.method == "HEAD":
        return response
    async with opened(request.app[OBJECTS], version, start=start, stop=stop) as chunks:
        return await send_stream(request, response, chunks)


def _range(request: web.Request, version: Version) -> tuple[int, int]:
    """The bytes that are wanted, from and to before; all of them where the request names no range of bytes."""
    wanted = _single_range(request)
    if wanted is None or request.headers.get("If-Range", f'"{version.digest}"') != f'"{version.digest}"':
        return 0, version.size
    start, stop, _step = wanted.indices(version.size)
    if start >= stop:
        raise web.HTTPRequestRangeNotSatisfiable(
            text=f"the artifact has {version.size} bytes; ask for a range within.",
            headers={"Content-Range": f"bytes */{version.size}"},
        )
    return start, stop


def _single_range(request: web.Request) -> slice | None:
    with contextlib.suppress(ValueError):  # RFC 9110, section 14.2: a range that is not understood is ignored
        return request.http_range if "Range" in request.headers else None
    return None


ROUTES = (web.get("/job-bundles/{slug}/versions/{version}/download", download),)
