"""Tokens over HTTP."""

from aiohttp import web

from libs.common import models
from libs.common.api import Answer, operation
from libs.common.auth import Scope
from libs.common.paging import PageQuery, page_of
from libs.common.web import json_response, origin_of
from services.registry import tokens
from services.registry.resources import AUTHENTICATOR, POOL


@operation(Scope.ADMIN, answers={201: Answer(models.NewToken, "The token. Its secret is shown this once.")})
async def create_token(request: web.Request, body: models.TokenRequest) -> web.Response:
    """Make a token."""
    secret, token = await tokens.create(request.app[POOL], body, origin_of(request))
    shown = models.Token.model_validate(token)
    answer = models.NewToken(token=secret, **dict(shown))
    return json_response(answer, status=201, headers={"Cache-Control": "no-store"})


@operation(Scope.ADMIN, answers={200: models.Page[models.Token]}, errors=["invalid-cursor"])
async def list_tokens(request: web.Request, query: PageQuery) -> web.Response:
    """List tokens, without their secrets."""
    wanted = query.wanted()
    rows = await tokens.list_page(request.app[POOL], after=wanted.key, limit=wanted.limit + 1)
    return json_response(page_of(rows, wanted, models.Token.model_validate, lambda row: row.id))


@operation(Scope.ADMIN, answers={200: models.Token}, errors=["token-not-found"])
async def revoke_token(request: web.Request) -> web.Response:
    """Revoke a token. To revoke it again changes nothing."""
    token = await tokens.revoke(request.app[POOL], request.match_info["id"], origin_of(request))
    request.app[AUTHENTICATOR].forget()
    return json_response(models.Token.model_validate(token))


@operation(Scope.BUNDLES_READ, answers={200: models.Introspection})
async def introspect(request: web.Request, body: models.IntrospectionRequest) -> web.Response:
    """Say whom a token speaks for.

    An unknown, expired or revoked token is `{"active": false}` (after RFC 7662).
    """
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
