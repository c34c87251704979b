"""Keeping the values of secrets out of what a job says: its log, its progress, its error, its result.

A value is recognised as it is, line by line, as JSON and the interpreters' own displays show it, as URLs and as base64
write it, the last also inside a longer text that was encoded (such as a header for basic authentication). Whoever wants
to can disguise it in other ways: this keeps values from being shown by mistake, not from being given away.
"""

import base64
import json
from collections.abc import Iterable
from typing import Any
from urllib.parse import quote, quote_plus

MASK = "***"

_LEAST_CHARACTERS = 4
_LEAST_BASE64_CHARACTERS = 8
_LIKE_ENCODE_URI_COMPONENT = "!'()*~-_."


class Mask:
    """Replaces the values of secrets by `***`. Values of fewer than four characters are let pass."""

    def __init__(self, values: Iterable[str] = ()) -> None:
        found = {form for value in values for form in _forms(value)}
        self._forms = sorted(found, key=len, reverse=True)
        # As the text of a JSON document would show them.
        self._escaped = {json.dumps(form, ensure_ascii=False)[1:-1] for form in self._forms}
        self._longest = len(self._forms[0]) if self._forms else 0

    def text(self, text: str) -> str:
        """`text` with every value replaced, and with the beginning of one where the text was cut (it ends with `…`)."""
        if not self._forms:
            return text
        if text.endswith("…"):
            return self.piece("", text[:-1], goes_on=True) + "…"
        return self.piece("", text, goes_on=False)

    def ending(self, text: str) -> str:
        """As much of the end of `text` as a value can begin in."""
        return text[-self._longest :] if self._longest else ""

    def piece(self, before: str, text: str, *, goes_on: bool) -> str:
        """The same for a piece of a longer text: `before` is what came just before it, and `goes_on` if more comes."""
        spans = self._spans(before + text)
        if goes_on:
            spans += self._beginnings(before + text)
        return _without(before + text, spans, len(before))

    def value(self, value: Any) -> Any:
        """A JSON value with every value replaced inside its texts and names; numbers are as they are."""
        if not self._forms:
            return value
        shown = json.dumps(value, ensure_ascii=False)
        # Most have none, and a look at the whole is much cheaper than one at each text.
        return self._value(value) if any(form in shown for form in self._escaped) or "…" in shown else value

    def _value(self, value: Any) -> Any:
        match value:
            case str():
                return self.text(value)
            case dict():
                return {self.text(key): self._value(item) for key, item in value.items()}
            case list():
                return [self._value(item) for item in value]
            case _:
                return value

    def _spans(self, text: str) -> list[tuple[int, int]]:
        spans = []
        for form in self._forms:
            start = text.find(form)
            while start >= 0:
                spans.append((start, start + len(form)))
                start = text.find(form, start + 1)
        return spans

    def _beginnings(self, text: str) -> list[tuple[int, int]]:
        """The end of `text`, where it is the beginning of a value."""
        spans = []
        for form in self._forms:
            start = text.find(form[:_LEAST_CHARACTERS], max(0, len(text) - len(form) + 1))
            while start >= 0 and not form.startswith(text[start:]):
                start = text.find(form[:_LEAST_CHARACTERS], start + 1)
            if start >= 0:
                spans.append((start, len(text)))
        return spans


class MaskedStream:
    """Masks a text that comes in pieces."""

    def __init__(self, mask: Mask) -> None:
        self._mask = mask
        self._before = ""

    def piece(self, text: str, *, goes_on: bool) -> str:
        """The next piece, without values that began in those before it. The last one of a line does not go on."""
        masked = self._mask.piece(self._before, text, goes_on=goes_on)
        self._before = self._mask.ending(self._before + text) if goes_on else ""
        return masked


def _without(text: str, spans: list[tuple[int, int]], start: int) -> str:
    """`text` from `start` on, each run of overlapping spans replaced by one mask."""
    parts = []
    position = start
    masked_until = -1
    for begin, end in sorted(spans):
        if end <= start:
            continue
        if begin > masked_until:
            parts += [text[position : max(begin, start)], MASK]
        position = masked_until = max(end, masked_until)
    return "".join([*parts, text[position:]])


def _forms(value: str) -> set[str]:
    forms = {value, *value.splitlines()}
    for form in tuple(forms):
        for ascii_only in (True, False):
            escaped = json.dumps(form, ensure_ascii=ascii_only)[1:-1]
            unquoted = escaped.replace('\\"', '"')  # as interpreters show texts, in quotes of another kind
            forms |= {escaped, unquoted, unquoted.replace("'", "\\'")}
    encodable = value.encode("utf-8", "surrogateescape")
    forms |= {quote(encodable, safe=safe) for safe in ("", "/", _LIKE_ENCODE_URI_COMPONENT)}
    forms |= {quote_plus(encodable, safe=safe) for safe in ("", "*")}  # as forms are sent, by Python and by browsers
    forms |= {form for form in _base64_forms(encodable) if len(form) >= _LEAST_BASE64_CHARACTERS}
    return {form.strip() for form in forms if len(form.strip()) >= _LEAST_CHARACTERS}


def _base64_forms(data: bytes) -> set[str]:
    """How `data` looks in base64 (RFC 4648, both alphabets), wherever in the encoded bytes it begins."""
    forms = set()
    for shift in range(3):
        first = -(-shift * 8 // 6)  # what comes before it also decides about these characters
        last = (shift + len(data)) * 8 // 6
        for encode in (base64.b64encode, base64.urlsafe_b64encode):
            forms.add(encode(bytes(shift) + data).decode()[first:last])
    return forms
