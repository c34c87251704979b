"""Tokens, and whom they speak for."""

from pydantic import Field

from libs.common.models.base import Moment, Request, Resource, Timestamp


class TokenRequest(Request):
    """A token to be made. Scopes are names, narrowed by patterns of slugs where there are any; unknown are refused."""

    subject: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._@-]{0,99}$")
    scopes: list[str] = Field(
        min_length=1, max_length=100, description="Such as `bundles:read` or `bundles:publish:observatory-*`."
    )
    expires_at: Moment | None = None


class Token(Resource):
    """A token as it can be shown: never its secret."""

    id: str
    subject: str
    scopes: list[str]
    created_at: Timestamp
    created_by: str
    expires_at: Timestamp | None
    revoked_at: Timestamp | None
    last_used_at: Timestamp | None = Field(None, description="To the minute; null until it is used.")


class NewToken(Token):
    """A token at the one moment when its secret is known."""

    token: str


class Introspection(Resource):
    """Whom a token speaks for (after RFC 7662)."""

    active: bool
    subject: str | None = None
    token_id: str | None = None
    scopes: list[str] = Field(default_factory=list)


class IntrospectionRequest(Request):
    """A token that another service was shown."""

    token: str
