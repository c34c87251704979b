"""Bearer tokens (RFC 6750) and scopes."""

import contextlib
import hashlib
import re
import secrets
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from enum import StrEnum
from fnmatch import fnmatchcase
from typing import TypeAlias

from libs.common.errors import Forbidden, InvalidRequest

_TOKEN_PREFIX = "stw_"  # noqa: S105  # makes a leaked token easy to recognise; it is no secret


class Scope(StrEnum):
    """What a token may do."""

    BUNDLES_READ = "bundles:read"  # read bundles, versions, files, jobs and workflows, and download
    BUNDLES_PUBLISH = "bundles:publish"  # publish new versions, deprecate and yank them, define jobs and workflows
    BUNDLES_FORCE = "bundles:force"  # replace what is published, and go back
    BUILDS_WRITE = "builds:write"  # import examples, and watch imports and builds
    RUNS_READ = "runs:read"  # read runs, their logs and outputs
    RUNS_WRITE = "runs:write"  # start and cancel runs
    AUDIT_READ = "audit:read"  # read the audit trail
    ADMIN = "admin"  # everything: also manage tokens, quarantine, replace what is immutable


_PATTERN = re.compile(r"(?=\**[a-z0-9-])[a-z0-9*-]{1,128}")
_NOT_BY_SLUG = {
    Scope.BUILDS_WRITE: "an import is of an example, which may have any bundles",
    Scope.RUNS_READ: "runs, logs and outputs are read by their ids",
    Scope.AUDIT_READ: "the trail is one, and its events are about more than bundles",
    Scope.ADMIN: "an administrator may make any token",
}


@dataclass(frozen=True, slots=True)
class Grant:
    """A scope, for all slugs or for those that match `pattern`, in which `*` stands for any characters."""

    scope: Scope
    pattern: str | None = None

    def __str__(self) -> str:
        return self.scope.value if self.pattern is None else f"{self.scope.value}:{self.pattern}"

    def covers(self, slug: str) -> bool:
        """Whether it is for what has this slug."""
        return self.pattern is None or fnmatchcase(slug, self.pattern)  # a pattern has no other wildcards


@dataclass(frozen=True, slots=True)
class Principal:
    """Who a token speaks for: its subject is the actor in the audit trail."""

    subject: str
    grants: frozenset[Grant]
    token_id: str

    @property
    def scopes(self) -> list[str]:
        """Its grants as they are written."""
        return scope_names(self.grants)

    def may(self, scope: Scope, slug: str | None = None) -> bool:
        """Whether the token has `scope` for `slug`, or for everything where none is given; `admin` has all."""
        return any(
            grant.scope is Scope.ADMIN
            or (grant.scope is scope and (grant.pattern is None if slug is None else grant.covers(slug)))
            for grant in self.grants
        )

    def patterns(self, scope: Scope) -> list[str] | None:
        """The patterns of slugs that the token has `scope` for; None where it has it for everything."""
        if self.may(scope):
            return None
        return sorted(grant.pattern or "" for grant in self.grants if grant.scope is scope)

    def require(self, scope: Scope, slug: str | None = None) -> None:
        """Raise Forbidden unless the token has `scope` for `slug`, or for everything where none is given.

        To be asked before anything is looked up: the answer is the same whether there is something of that slug or not.
        """
        if self.may(scope, slug):
            return
        patterns = self.patterns(scope)
        if not patterns:
            raise Forbidden(
                f"the token of “{self.subject}” lacks the scope {scope}. Ask an administrator for a token that has it.",
                requiredScope=scope.value,
            )
        what = f"not for “{slug[:140]}”" if slug is not None else "this concerns more than these"
        raise Forbidden(
            f"the token of “{self.subject}” has the scope {scope} for {', '.join(patterns or [])}, and {what}. Ask an "
            "administrator for a token that has it.",
            requiredScope=scope.value,
            slug=slug,
            patterns=patterns,
        )

    def require_some(self, scope: Scope) -> None:
        """Raise Forbidden unless the token has `scope` for anything; whoever calls this asks for what exactly."""
        if self.patterns(scope) == []:
            self.require(scope)


Authenticate: TypeAlias = Callable[[str], Awaitable[Principal | None]]
"""From a bearer token to its principal; None where the token is unknown, expired or revoked."""


def new_token() -> str:
    """A new token: 256 random bits behind a recognisable prefix."""
    return _TOKEN_PREFIX + secrets.token_urlsafe(32)


def token_hash(token: str) -> bytes:
    """What is stored of a token. A fast hash is enough: tokens are random, not chosen."""
    return hashlib.sha256(token.encode("utf-8", "surrogateescape")).digest()  # header bytes may be anything


def parse_scopes(names: Iterable[str]) -> frozenset[Grant]:
    """Grants by name, such as `bundles:read` or `bundles:publish:observatory-*`.

    Raises InvalidRequest for none or an unknown one: no token gets more than was meant.
    """
    wanted = list(names)
    scopes = {name: _scope_in(name) for name in wanted}
    unknown = sorted(name for name, scope in scopes.items() if scope is None)
    if unknown:
        known = ", ".join(scope.value for scope in Scope)
        raise InvalidRequest(f"unknown scopes: {', '.join(unknown)}. Known scopes are {known}.", unknown=unknown)
    if not wanted:
        raise InvalidRequest("a token needs at least one scope.")
    return frozenset(_grant(name, scope) for name, scope in scopes.items() if scope is not None)


def known_grants(names: Iterable[str]) -> frozenset[Grant]:
    """Grants by name as a registry keeps them. What is not known here, but to a newer registry, gives no rights."""
    grants: set[Grant] = set()
    for name in names:
        with contextlib.suppress(InvalidRequest):
            grants |= parse_scopes([name])
    return frozenset(grants)


def scope_names(grants: Iterable[Grant]) -> list[str]:
    """Grants as they are written, sorted."""
    return sorted(map(str, grants))


def _scope_in(name: str) -> Scope | None:
    return next((scope for scope in Scope if name == scope.value or name.startswith(f"{scope.value}:")), None)


def _grant(name: str, scope: Scope) -> Grant:
    if name == scope.value:
        return Grant(scope)
    pattern = name.removeprefix(f"{scope.value}:")
    if reason := _NOT_BY_SLUG.get(scope):
        raise InvalidRequest(f"the scope {scope} can't be narrowed to {pattern[:140]}: {reason}.", scope=scope.value)
    if not _PATTERN.fullmatch(pattern):
        raise InvalidRequest(
            f"“{pattern[:140]}” is no pattern of slugs: use 1 to 128 lower-case letters, digits, hyphens and stars, of "
            f"which at least one is no star, as in {scope}:observatory-*.",
            scope=scope.value,
        )
    return Grant(scope, pattern)
