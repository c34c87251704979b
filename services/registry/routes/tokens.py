"""Tokens over HTTP."""

from http import HTTPStatus

from aiohttp import web
from pydantic import Field

from libs.common import models
from libs.common.api import Answer, operation
from libs.common.auth import Scope
from libs.common.database import Connection
from libs.common.idempotency import IDEMPOTENCY_ERRORS, IDEMPOTENCY_KEY, Claim, once
from libs.common.paging import PageQuery, page_of
from libs.common.problems import REQUEST_ID, problem
from libs.common.web import json_response, origin_of
from services.registry import tokens
from services.registry.resources import AUTHENTICATOR, POOL
from services.registry.store.tokens import Token, TokenFilter


class TokensQuery(PageQuery):
    """Which tokens."""

    subject: str | None = Field(None, description="Those that speak for it.")
    active: bool | None = Field(None, description="Those that work, or those that are revoked or expired.")
    unused_since: models.AwareMoment | None = Field(None, description="Those that nobody has used since, or ever.")


@operation(
    Scope.ADMIN,
    answers={201: Answer(models.NewToken, "The token. Its secret is shown this once.")},
    errors=[*IDEMPOTENCY_ERRORS, "token-shown-before"],
    headers=[IDEMPOTENCY_KEY],
)
async def create_token(request: web.Request, body: models.TokenRequest) -> web.Response:
    """Make a token.

    Repeated with the same `Idempotency-Key` it is 409, with the id of the token that was made: its secret is not kept.
    """

    async def work(claim: Claim) -> web.Response:
        async def conclude(connection: Connection, token: Token) -> None:
            await claim.keep(connection, _shown_before(token, request[REQUEST_ID]))

        secret, token = await tokens.create(request.app[POOL], body, origin_of(request), conclude=conclude)
        answer = models.NewToken(token=secret, **dict(models.Token.model_validate(token)))
        return json_response(answer, status=201, headers={"Cache-Control": "no-store"})

    return await once(request, body, work)


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


def _shown_before(token: Token, request_id: str) -> web.Response:
    """What whoever repeats the request is told, in place of a secret that nobody has kept."""
    return problem(
        HTTPStatus.CONFLICT,
        kind="token-shown-before",
        detail=f"the token {token.id} was made by the first request with this idempotency key. Its secret was in that "
        f"answer and is not kept. If it was lost, revoke the token (DELETE /tokens/{token.id}) and make another one "
        "with a new key.",
        request_id=request_id,
        members={"id": token.id},
    )


ROUTES = (
    web.post("/tokens", create_token),
    web.get("/tokens", list_tokens),
    web.delete("/tokens/{id:(?!introspect$)[^/]+}", revoke_token),
    web.post("/tokens/introspect", introspect),
)
