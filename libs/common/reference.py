"""The reference that a service gives of itself: `/openapi.json` for programs, `/docs` for people."""

import functools
import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from aiohttp import web

from libs.common.api import Answer, Content, Header, operation
from libs.common.openapi import Tag, make_document
from libs.common.reference_page import CONTENT_SECURITY_POLICY, render_page

_ETAG = Header("ETag", "Changes with the document.", '"9f86d081884c7d65"')
_IF_NONE_MATCH = Header("If-None-Match", "What the caller has: 304 for it.", '"9f86d081884c7d65"')
_NOT_MODIFIED = Answer(None, "The caller has it already.", (_ETAG,))


@dataclass(frozen=True, slots=True)
class _Resource:
    body: bytes
    etag: str


def reference_routes(service: str, routes: Iterable[web.RouteDef], tags: Sequence[Tag]) -> list[web.RouteDef]:
    """The two routes that describe a service with `routes`, and themselves."""
    described = list(routes)

    @functools.cache
    def made() -> tuple[_Resource, _Resource]:
        document = make_document(service, described, tags)
        return _resource(json.dumps(document, ensure_ascii=False)), _resource(render_page(document))

    @operation(
        None,
        answers={200: Answer(Content(("application/json",), "The document."), None, (_ETAG,)), 304: _NOT_MODIFIED},
        headers=[_IF_NONE_MATCH],
    )
    async def get_document(request: web.Request) -> web.Response:
        """Get this reference as an OpenAPI document."""
        return _answer(request, made()[0], "application/json", {})

    @operation(
        None,
        answers={200: Answer(Content(("text/html",), "The page."), None, (_ETAG,)), 304: _NOT_MODIFIED},
        headers=[_IF_NONE_MATCH],
    )
    async def get_page(request: web.Request) -> web.Response:
        """Get this reference as a page."""
        safety = {"Content-Security-Policy": CONTENT_SECURITY_POLICY, "Referrer-Policy": "no-referrer"}
        return _answer(request, made()[1], "text/html", safety)

    own = [web.get("/openapi.json", get_document), web.get("/docs", get_page)]
    described += own
    return own


def _resource(text: str) -> _Resource:
    body = text.encode()
    return _Resource(body, hashlib.sha256(body).hexdigest()[:16])


def _answer(request: web.Request, found: _Resource, content_type: str, headers: dict[str, str]) -> web.Response:
    headers = {**headers, "ETag": f'"{found.etag}"', "Cache-Control": "no-cache", "X-Content-Type-Options": "nosniff"}
    if any(tag.value in (found.etag, "*") for tag in request.if_none_match or ()):
        return web.Response(status=304, headers=headers)
    return web.Response(body=found.body, content_type=content_type, charset="utf-8", headers=headers)
