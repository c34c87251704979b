"""Conditional requests (RFC 9110, section 13): what is read as JSON has a strong tag, and is not sent twice."""

import hashlib

from aiohttp import hdrs, web
from aiohttp.typedefs import Middleware

from libs.common.api import operation_of
from libs.common.problems import Handler

_METHODS = ("GET", "HEAD")
_CACHE_CONTROL = "private, no-cache"
"""It may be kept by who asked, and has to be asked for again each time: with the tag that costs little."""


def tags_middleware() -> Middleware:
    """Give what is read as JSON with a token a tag of its bytes, and answer 304 to who has these bytes already."""

    @web.middleware
    async def middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
        response = await handler(request)
        if request.method not in _METHODS or not _is_resource(request, response):
            return response
        tag = hashlib.sha256(response.body).hexdigest()[:32]  # type: ignore[attr-defined]
        headers = {hdrs.ETAG: f'"{tag}"', hdrs.CACHE_CONTROL: _CACHE_CONTROL}
        if any(given.value in (tag, "*") for given in request.if_none_match or ()):
            return web.Response(status=304, headers=headers)
        response.headers.update(headers)
        return response

    return middleware


def _is_resource(request: web.Request, response: web.StreamResponse) -> bool:
    declared = operation_of(request.match_info.handler)
    return (
        declared is not None
        and declared.scope is not None
        and isinstance(response, web.Response)
        and response.status == 200
        and response.content_type == "application/json"
        and isinstance(response.body, bytes)
        and hdrs.ETAG not in response.headers
    )
