"""Cross-origin requests (WHATWG Fetch, CORS protocol): refused by browsers unless an origin is named in the settings.

Tokens travel in a header that scripts set themselves, so that browsers are never told to send credentials of their own.
"""

from collections.abc import Collection

from aiohttp import hdrs, web
from aiohttp.typedefs import Middleware

from libs.common.problems import Handler

_SENT = "Authorization, Content-Type, Idempotency-Key, If-None-Match, If-Range, Last-Event-ID, Range, X-Request-Id"
_EXPOSED = "Accept-Ranges, Content-Disposition, Content-Range, ETag, Location, Retry-After, X-Request-Id"
_PREFLIGHT_SECONDS = "600"


def preflight_middleware(origins: Collection[str]) -> Middleware:
    """Answer what browsers ask before they send a request of a page from one of `origins`: it needs no token."""

    @web.middleware
    async def middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
        refused = request.match_info.http_exception
        if (
            request.method != "OPTIONS"
            or request.headers.get(hdrs.ORIGIN) not in origins
            or hdrs.ACCESS_CONTROL_REQUEST_METHOD not in request.headers
            or not isinstance(refused, web.HTTPMethodNotAllowed)
        ):
            return await handler(request)
        return web.Response(
            status=204,
            headers={
                hdrs.ACCESS_CONTROL_ALLOW_METHODS: ", ".join(sorted(refused.allowed_methods)),
                hdrs.ACCESS_CONTROL_ALLOW_HEADERS: _SENT,
                hdrs.ACCESS_CONTROL_MAX_AGE: _PREFLIGHT_SECONDS,
            },
        )

    return middleware


def allow_origin(request: web.Request, response: web.StreamResponse, origins: Collection[str]) -> None:
    """Let a page from one of `origins` read the answer. Call it before the first byte."""
    response.headers.add(hdrs.VARY, hdrs.ORIGIN)
    origin = request.headers.get(hdrs.ORIGIN)
    if origin in origins:
        response.headers[hdrs.ACCESS_CONTROL_ALLOW_ORIGIN] = str(origin)
        response.headers[hdrs.ACCESS_CONTROL_EXPOSE_HEADERS] = _EXPOSED
