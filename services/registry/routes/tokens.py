"""Tokens over HTTP."""

from aiohttp import web

from libs.common import models
from libs.common.auth import Scope
from libs.common.paging import page_of, read_page
from libs.common.web import json_response, origin_of, read_model, requires
from services.registry import tokens
from services.registry.resources import AUTHENTICATOR, POOL


@requires(Scope.ADMIN)
async def create_token(request: web.Request) -> web.Response:
    """POST /tokens"""
    body = await read_model(request, models.TokenRequest)
    secret, token = await tokens.create(request.app[POOL], body, origin_of(request))
    shown = models.Token.model_validate(token)
    answer = models.NewToken(token=secret, **dict(shown))
    return json_response(answer, status=201, headers={"Cache-Control": "no-store"})


@requires(Scope.ADMIN)
async def list_tokens(request: web.Request) -> web.Response:
    """GET /tokens"""
    wanted = read_page(request)
    rows = await tokens.list_page(request.app[POOL], after=wanted.key, limit=wanted.limit + 1)
    return json_response(page_of(rows, wanted, models.Token.model_validate, lambda row: row.id))


@requires(Scope.ADMIN)
async def revoke_token(request: web.Request) -> web.Response:
    """DELETE /tokens/{id}"""
    token = await tokens.revoke(request.app[POOL], request.match_info["id"], origin_of(request))
    request.app[AUTHENTICATOR].forget()
    return json_response(models.Token.model_validate(token))


@requires(Scope.BUNDLES_READ)
async def introspect(request: web.Request) -> web.Response:
    """POST /tokens/introspect"""
    body = await read_model(request, models.IntrospectionRequest)
    principal = await request.app[AUTHENTICATOR].principal(body.token)
    if principal is None:
        return json_response(models.Introspection(active=False))
    scopes = sorted(scope.value for scope in principal.scopes)
    return json_response(models.Introspection(active=True, subject=principal.subject, scopes=scopes))


ROUTES = (
    web.post("/tokens", create_token),
    web.get("/tokens", list_tokens),
    web.delete("/tokens/{id}", revoke_token),
    web.post("/tokens/introspect", introspect),
)
