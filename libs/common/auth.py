"""Bearer tokens (RFC 6750) and scopes."""

import hashlib
import secrets
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import TypeAlias

from libs.common.errors import Forbidden, InvalidRequest

_TOKEN_PREFIX = "stw_"  # noqa: S105  # makes a leaked token easy to recognise; it is no secret


class Scope(StrEnum):
    """What a token may do."""

    BUNDLES_READ = "bundles:read"  # read bundles, versions, files, jobs and workflows, and download
    BUNDLES_PUBLISH = "bundles:publish"  # publish new versions, deprecate, define jobs and workflows
    BUNDLES_FORCE = "bundles:force"  # replace what is published, and go back
    BUILDS_WRITE = "builds:write"  # import examples, and watch imports and builds
    RUNS_READ = "runs:read"  # read runs, their logs and outputs
    RUNS_WRITE = "runs:write"  # start and cancel runs
    AUDIT_READ = "audit:read"  # read the audit trail
    ADMIN = "admin"  # everything, and manage tokens


@dataclass(frozen=True, slots=True)
class Principal:
    """Who a token speaks for: its subject is the actor in the audit trail."""

    subject: str
    scopes: frozenset[Scope]

    def may(self, scope: Scope) -> bool:
        """Whether the token has `scope`; `admin` has all."""
        return scope in self.scopes or Scope.ADMIN in self.scopes

    def require(self, scope: Scope) -> None:
        """Raise Forbidden unless the token has `scope`."""
        if not self.may(scope):
            raise Forbidden(
                f"the token of “{self.subject}” lacks the scope {scope}. Ask an administrator for a token that has it.",
                requiredScope=scope.value,
            )


Authenticate: TypeAlias = Callable[[str], Awaitable[Principal | None]]
"""From a bearer token to its principal; None where the token is unknown, expired or revoked."""


def new_token() -> str:
    """A new token: 256 random bits behind a recognisable prefix."""
    return _TOKEN_PREFIX + secrets.token_urlsafe(32)


def token_hash(token: str) -> bytes:
    """What is stored of a token. A fast hash is enough: tokens are random, not chosen."""
    return hashlib.sha256(token.encode("utf-8", "surrogateescape")).digest()  # header bytes may be anything


def parse_scopes(names: Iterable[str]) -> frozenset[Scope]:
    """Scopes by name; raises InvalidRequest for none or an unknown one: no token gets more than was meant."""
    wanted = list(names)
    unknown = sorted(set(wanted) - {scope.value for scope in Scope})
    if unknown:
        known = ", ".join(scope.value for scope in Scope)
        raise InvalidRequest(f"unknown scopes: {', '.join(unknown)}. Known scopes are {known}.", unknown=unknown)
    if not wanted:
        raise InvalidRequest("a token needs at least one scope.")
    return frozenset(Scope(name) for name in wanted)
