"""How long to wait before a cluster is asked again."""

import random

FIRST_PAUSE_SECONDS = 0.25

_SPREAD = random.Random()  # noqa: S311  # so that replicas don't come back together


class Pauses:
    """Each is twice as long as the one before, up to `longest_seconds`, and a quarter longer or shorter than that."""

    def __init__(self, longest_seconds: float) -> None:
        self._longest = longest_seconds
        self._next = FIRST_PAUSE_SECONDS

    def next(self, at_least: float | None = None) -> float:
        """The seconds to wait now, no fewer than the server asks for."""
        seconds = self._next * _SPREAD.uniform(0.75, 1.25)
        self._next = min(2 * self._next, self._longest)
        return max(seconds, at_least or 0.0)

    def reset(self) -> None:
        """It went well: the next pause is the first again."""
        self._next = FIRST_PAUSE_SECONDS
