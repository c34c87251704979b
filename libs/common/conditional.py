"""Conditional requests (RFC 9110, section 13): what is read as JSON has a strong tag, and is not sent twice."""

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping

from aiohttp import hdrs, web
from aiohttp.typedefs import Middleware
from pydantic import BaseModel

from libs.common.api import operation_of
from libs.common.models import written
from libs.common.problems import Handler

JSON_HEADERS: dict[str, str] = {hdrs.CONTENT_TYPE: "application/json; charset=utf-8"}

_METHODS = ("GET", "HEAD")
_CACHE_CONTROL = "private, no-cache"
"""It may be kept by who asked, and has to be asked for again each time: with the tag that costs little."""

_MAX_KEPT = 1024
_MAX_KEPT_BYTES = 16 * 1024


class KeptAnswers:
    """Answers in JSON as they were written before, with their tags: the last thousand, of those that are not large.

    Whoever asks for one says what it is made of, by which it is found again. So it has to be all that it depends on.
    """

    def __init__(self) -> None:
        self._kept: OrderedDict[Hashable, tuple[bytes, Mapping[str, str]]] = OrderedDict()

    def answer(self, made_of: Hashable, make: Callable[[], BaseModel]) -> web.Response:
        """The answer that is made of this, by `make` where it was not kept."""
        kept = self._kept.get(made_of)
        if kept is None:
            body = written(make())
            kept = body, JSON_HEADERS | _tagged(_tag(body))
            if len(body) <= _MAX_KEPT_BYTES:
                self._kept[made_of] = kept
                if len(self._kept) > _MAX_KEPT:
                    self._kept.popitem(last=False)
        else:
            self._kept.move_to_end(made_of)
        body, headers = kept
        return web.Response(body=body, headers=headers)


def tags_middleware() -> Middleware:
    """Give what is read as JSON with a token a tag of its bytes, and answer 304 to who has these bytes already."""

    @web.middleware
    async def middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
        response = await handler(request)
        if request.method not in _METHODS or not _is_resource(request, response):
            return response
        quoted = response.headers.get(hdrs.ETAG)
        if quoted is None:
            response.headers.update(_tagged(_tag(response.body)))  # type: ignore[attr-defined]
            quoted = response.headers[hdrs.ETAG]
        if any(given.value in (quoted[1:-1], "*") for given in request.if_none_match or ()):
            return web.Response(status=304, headers=_tagged(quoted[1:-1]))
        return response

    return middleware


def _tag(body: bytes) -> str:
    return hashlib.sha256(body).hexdigest()[:32]


def _tagged(tag: str) -> dict[str, str]:
    return {hdrs.ETAG: f'"{tag}"', hdrs.CACHE_CONTROL: _CACHE_CONTROL}


def _is_resource(request: web.Request, response: web.StreamResponse) -> bool:
    declared = operation_of(request.match_info.handler)
    return (
        declared is not None
        and declared.scope is not None
        and isinstance(response, web.Response)
        and response.status == 200
        and response.content_type == "application/json"
        and isinstance(response.body, bytes)
    )
