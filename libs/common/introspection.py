"""Whom a token speaks for, asked at the registry and remembered for a few seconds."""

import time
from collections import OrderedDict
from http import HTTPStatus

from libs.common.auth import Principal, known_grants, token_hash
from libs.common.client import RegistryClient, ServiceError
from libs.common.errors import TooManyRequests, Unavailable
from libs.common.rate import UnknownTokens

_KNOWN_SECONDS = 5.0
_UNKNOWN_SECONDS = 1.0
_CAPACITY = 4096


class CachedIntrospection:
    """Authenticates bearer tokens for a service that does not own them: an `Authenticate`.

    A revoked token works for at most five seconds more, a new one at the latest a second after it was tried too early.
    Tokens are remembered by their hash, the most recent 4096 of them. Raises Unavailable when the registry can't be
    asked, never anything that looks like an answer; TooManyRequests while too many unknown tokens are tried.
    """

    def __init__(self, registry: RegistryClient, unknown: UnknownTokens) -> None:
        self._registry = registry
        self._unknown = unknown
        self._answers: OrderedDict[bytes, tuple[float, Principal | None]] = OrderedDict()

    async def __call__(self, token: str) -> Principal | None:
        key = token_hash(token)
        remembered = self._answers.get(key)
        if remembered is not None and time.monotonic() < remembered[0]:
            return remembered[1]
        was_known = remembered is not None and remembered[1] is not None
        if not was_known:
            self._unknown.admit()
        principal = await self._ask(token)
        if principal is not None and not was_known:
            self._unknown.was_known()
        expires = time.monotonic() + (_UNKNOWN_SECONDS if principal is None else _KNOWN_SECONDS)
        self._answers[key] = (expires, principal)
        self._answers.move_to_end(key)
        while len(self._answers) > _CAPACITY:
            self._answers.popitem(last=False)
        return principal

    async def _ask(self, token: str) -> Principal | None:
        try:
            answer = await self._registry.introspect(token)
        except ServiceError as error:
            if error.status == HTTPStatus.TOO_MANY_REQUESTS:
                raise TooManyRequests(error.message, kind=error.kind, retry_after_seconds=1) from error
            raise Unavailable(
                f"the registry did not say whom the token speaks for: {error.message} "
                "If this goes on, check the service token of this service.",
                kind="registry-unavailable",
            ) from error
        if not answer.active or not answer.subject:
            return None
        return Principal(answer.subject, known_grants(answer.scopes), answer.token_id or answer.subject)
