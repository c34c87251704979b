"""References in the parameters of a workflow's steps: `{{ parameters.site }}`, `{{ steps.load.result.rows }}`.

A text that is nothing but one reference becomes the value itself, of whatever type; inside other text a value that is
no text is written as JSON.
"""

import json
import re
from collections.abc import Mapping
from typing import Any

_REFERENCE = re.compile(r"\{\{(.*?)\}\}", re.DOTALL)
_PATH = re.compile(r"\s*([A-Za-z_][A-Za-z0-9_-]*(?:\.[A-Za-z0-9_-]+)*)\s*")
_SHOWN_NAMES = 10
_MAX_DEPTH = 100


class TemplateError(Exception):
    """A reference that means nothing; the message is a sentence."""


def render(value: Any, scope: Mapping[str, Any], *, depth: int = _MAX_DEPTH) -> Any:
    """`value` with every reference in it replaced by what `scope` has there. Raises TemplateError."""
    if depth == 0:
        raise TemplateError(f"the parameters are nested more than {_MAX_DEPTH} deep.")
    match value:
        case str():
            return _render_text(value, scope)
        case dict():
            return {key: render(item, scope, depth=depth - 1) for key, item in value.items()}
        case list():
            return [render(item, scope, depth=depth - 1) for item in value]
        case _:
            return value


def _render_text(text: str, scope: Mapping[str, Any]) -> Any:
    whole = _REFERENCE.fullmatch(text.strip())
    if whole is not None and "}}" not in whole[1]:
        return _look_up(whole[1], scope)
    return _REFERENCE.sub(lambda found: _as_text(_look_up(found[1], scope)), text)


def _as_text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def _look_up(reference: str, scope: Mapping[str, Any]) -> Any:
    path = _PATH.fullmatch(reference)
    if path is None:
        raise TemplateError(
            f"“{{{{{reference[:100]}}}}}” is not a reference: write {{{{ parameters.name }}}} or "
            "{{ steps.name.result.field }}."
        )
    value: Any = scope
    passed: list[str] = []
    for name in path[1].split("."):
        match value:
            case Mapping() if name in value:
                value = value[name]
            case list() if name.isdigit() and int(name) < len(value):
                value = value[int(name)]
            case _:
                raise TemplateError(_missing(path[1], passed, name, value))
        passed.append(name)
    return value


def _missing(reference: str, passed: list[str], name: str, value: Any) -> str:
    where = ".".join(passed) or "the workflow run"
    match value:
        case Mapping():
            names = sorted(str(key) for key in value)
            shown = ", ".join(names[:_SHOWN_NAMES]) + (", …" if len(names) > _SHOWN_NAMES else "")
            found = f"it has {shown}" if names else "it has nothing"
        case list():
            found = f"it is a list of {len(value)}"
        case _:
            found = f"it is {json.dumps(value, ensure_ascii=False)[:100]}"
    return f"{reference}: there is no “{name}” in {where}; {found}."
