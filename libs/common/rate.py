"""How many requests a token may make, and how many tokens may be tried. Each process counts for itself, in memory."""

import math
import time
from collections import OrderedDict
from collections.abc import Collection
from dataclasses import dataclass
from typing import Generic, TypeVar

from prometheus_client import CollectorRegistry, Counter

from libs.common.auth import Principal
from libs.common.errors import TooManyRequests
from libs.common.settings import ServiceSettings

State = TypeVar("State")

_MAX_REMEMBERED = 10_000
_UNKNOWN_BURST_SECONDS = 4.0


class Bucket:
    """A token bucket: `per_second` on average, `burst` at once."""

    __slots__ = ("_burst", "_level", "_per_second", "_seen_at")

    def __init__(self, per_second: float, burst: float) -> None:
        self._per_second = per_second
        self._burst = burst
        self._level = burst
        self._seen_at = time.monotonic()

    def take(self) -> float:
        """Take one; 0, or after how many seconds there will be one."""
        now = time.monotonic()
        self._level = min(self._burst, self._level + (now - self._seen_at) * self._per_second)
        self._seen_at = now
        if self._level < 1:
            return (1 - self._level) / self._per_second
        self._level -= 1
        return 0.0

    def give_back(self) -> None:
        """Give back what was taken for nothing."""
        self._level = min(self._burst, self._level + 1)


class Recent(Generic[State]):
    """What is known of the tokens that were used most recently, by their ids; it is forgotten of all others."""

    def __init__(self) -> None:
        self._known: OrderedDict[str, State] = OrderedDict()

    def get(self, token_id: str, new: State) -> State:
        """What is known of a token, which is `new` where nothing is."""
        found = self._known.setdefault(token_id, new)
        self._known.move_to_end(token_id)
        while len(self._known) > _MAX_REMEMBERED:
            self._known.popitem(last=False)
        return found


def refusals_counter(registry: CollectorRegistry) -> Counter:
    """Counts refusals by the limit that they are for."""
    return Counter(
        "stowage_limit_refusals", "Requests that were refused for a limit of tokens.", ("limit",), registry=registry
    )


@dataclass(frozen=True, slots=True)
class RequestLimit:
    """What one token may ask: `per_second` on average, without a bound where it is None, and `burst` at once.

    `setting` is the name of the variable that says so, for the refusal.
    """

    per_second: float | None
    burst: int
    unlimited: Collection[str]
    setting: str

    @classmethod
    def of(cls, settings: ServiceSettings) -> "RequestLimit":
        """The limit that the settings describe."""
        return cls(
            settings.token_requests_per_second,
            settings.token_request_burst,
            frozenset(settings.unlimited_subjects),
            settings.variable("token_requests_per_second"),
        )


class RequestRates:
    """Counts the requests of each token."""

    def __init__(self, limit: RequestLimit, refusals: Counter) -> None:
        self._limit = limit
        self._refusals = refusals
        self._buckets: Recent[Bucket] = Recent()

    def admit(self, principal: Principal) -> None:
        """Count a request; TooManyRequests where it is one too many."""
        limit = self._limit
        if limit.per_second is None or principal.subject in limit.unlimited:
            return
        seconds = self._buckets.get(principal.token_id, Bucket(limit.per_second, limit.burst)).take()
        if seconds:
            self._refusals.labels("requests").inc()
            raise TooManyRequests(
                f"the token of “{principal.subject}” asks more often than {limit.per_second:g} times a second "
                f"({limit.setting}). Ask again later, or less often.",
                kind="too-many-requests",
                retry_after_seconds=math.ceil(seconds),
                limit=limit.per_second,
                setting=limit.setting,
            )


class UnknownTokens:
    """Bounds how often tokens are looked up that nobody knows, so that a flood of them keeps no database busy.

    Tokens that were known a moment ago are looked up whatever comes: whoever has one does not notice the flood.
    """

    def __init__(self, per_second: float, setting: str, refusals: Counter) -> None:
        self._bucket = Bucket(per_second, max(1.0, per_second * _UNKNOWN_BURST_SECONDS))
        self._per_second = per_second
        self._setting = setting
        self._refusals = refusals

    @classmethod
    def of(cls, settings: ServiceSettings, refusals: Counter) -> "UnknownTokens":
        """The bound that the settings describe."""
        return cls(settings.unknown_tokens_per_second, settings.variable("unknown_tokens_per_second"), refusals)

    def admit(self) -> None:
        """Before a token is looked up; TooManyRequests where too many were unknown."""
        seconds = self._bucket.take()
        if seconds:
            self._refusals.labels("unknown-tokens").inc()
            raise TooManyRequests(
                f"more than {self._per_second:g} unknown tokens a second are tried here ({self._setting}). If this "
                "token is new, ask again in a moment.",
                kind="too-many-unknown-tokens",
                retry_after_seconds=math.ceil(seconds),
                limit=self._per_second,
                setting=self._setting,
            )

    def was_known(self) -> None:
        """After the lookup: it was a token that works."""
        self._bucket.give_back()
