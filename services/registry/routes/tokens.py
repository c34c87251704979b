"""Tokens over HTTP."""

from aiohttp import web
from pydantic import AwareDatetime, Field

from libs.common import models
from libs.common.api import Answer, operation
from libs.common.auth import Scope
from libs.common.paging import PageQuery, page_of
from libs.common.web import json_response, origin_of
from services.registry import tokens
from services.registry.resources import AUTHENTICATOR, POOL
from services.registry.store.tokens import TokenFilter


class TokensQuery(PageQuery):
    """Which tokens."""

    subject: str | None = Field(None, description="Those that speak for it.")
    active: bool | None = Field(None, description="Those that work, or those that are revoked or expired.")
    unused_since: AwareDatetime | None = Field(None, description="Those that nobody has used since, or ever.")


@operation(Scope.ADMIN, answers={201: Answer(models.NewToken, "The token. Its secret is shown this once.")})
async def create_token(request: web.Request, body: models.TokenRequest) -> web.Response:
    """Make a token."""
    secret, token = await tokens.create(request.app[POOL], body, origin_of(request))
    shown = models.Token.model_validate(token)
    answer = models.NewToken(token=secret, **dict(shown))
    return json_response(answer, status=201, headers={"Cache-Control": "no-store"})


@operation(Scope.ADMIN, answers={200: models.Page[models.Token]}, errors=["invalid-cursor"])
async def list_tokens(request: web.Request, query: TokensQuery) -> web.Response:
    """List tokens, without their secrets."""
    wanted = query.wanted()
    asked = TokenFilter(query.subject, query.active, query.unused_since)
    rows = await tokens.list_page(request.app[POOL], asked, after=wanted.key, limit=wanted.limit + 1)
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
    return json_response(
        models.Introspection(
            active=True, subject=principal.subject, token_id=principal.token_id, scopes=principal.scopes
        )
    )


ROUTES = (
    web.post("/tokens", create_token),
    web.get("/tokens", list_tokens),
    web.delete("/tokens/{id}", revoke_token),
    web.post("/tokens/introspect", introspect),
)
