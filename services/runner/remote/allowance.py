"""How much an agent may say: the holder has others to listen to, and reading what makes no sense takes time too."""

import time

from libs.common.object_uploads import PART_BYTES
from services.runner.limits import Rules
from services.runner.remote.messages import MAX_SPOKEN_CHARACTERS, MESSAGE_OVERHEAD_BYTES, NotUnderstood

_ESCAPED = 8  # a character of the log has up to seven on the wire, and each line some of its own
_CHARACTERS_A_FILE = 16 * 1024  # questions about an output, and again when the bucket is away
_TYPE_CHARACTERS = 32  # the type of a message comes first
_CHARACTERS_A_PART = 4 * 1024
_CHARACTERS_A_SECOND = 32 * 1024  # how far the handler is, as often as it is told


class Allowance:
    """What one agent may say from now on. An honest one is far from needing it."""

    def __init__(self, rules: Rules, max_log_bytes: int) -> None:
        self._begun = time.monotonic()
        self._left = (
            _ESCAPED * max_log_bytes
            + most_bytes_of_result(rules.max_result_bytes)
            + _CHARACTERS_A_FILE * rules.max_outputs
            + _CHARACTERS_A_PART * (rules.max_output_bytes // PART_BYTES)
        )

    def spend(self, text: str) -> None:
        """Count a message, before it is read. NotUnderstood where that is too much."""
        _require_short(text)
        self._left -= len(text)
        if self._left + _CHARACTERS_A_SECOND * (time.monotonic() - self._begun) < 0:
            raise NotUnderstood("it says more than an attempt can give rise to")


def most_bytes_of_result(max_result_bytes: int) -> int:
    """The length of a message with the largest result: JSON in JSON, where a quotation mark is written as two."""
    return 2 * max_result_bytes + MESSAGE_OVERHEAD_BYTES


def _require_short(text: str) -> None:
    """Raise NotUnderstood for what is longer than any message but the last one of an attempt."""
    if len(text) > MAX_SPOKEN_CHARACTERS and '"ended"' not in text[:_TYPE_CHARACTERS]:
        raise NotUnderstood(f"a message has {len(text)} characters; it may have {MAX_SPOKEN_CHARACTERS}")
