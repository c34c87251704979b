"""Parameters of paths and query strings, as the OpenAPI document describes them."""

import re
from typing import Any

_ID = {"type": "string", "pattern": "^[A-Za-z0-9_]{1,64}$"}
_SUFFIX = "_019aa5c3e1f200112233445566778899"

_PATH: dict[str, tuple[str, dict[str, Any], Any]] = {
    "slug": (
        "A name: lower-case letters, digits and hyphens.",
        {"type": "string", "pattern": "^[a-z0-9]([a-z0-9-]{0,126}[a-z0-9])?$"},
        "hello",
    ),
    "version": (
        "A semantic version; where something is read also `latest`.",
        {
            "type": "string",
            "maxLength": 128,
            "pattern": r"^(0|[1-9][0-9]{0,8})\.(0|[1-9][0-9]{0,8})\.(0|[1-9][0-9]{0,8})"
            r"(-[a-z][0-9a-z]*)?(\+[0-9a-z]+)?$|^latest$",
        },
        "1.2.0",
    ),
    "digest": (
        "The digest of an artifact.",
        {"type": "string", "pattern": "^sha256:[0-9a-f]{64}$"},
        f"sha256:{'9f' * 32}",
    ),
    "path": ("The path of the file.", {"type": "string", "minLength": 1}, "plots/temperature.svg"),
    "imports/id": ("The id of an import.", _ID, f"imp{_SUFFIX}"),
    "builds/id": ("The id of a build.", _ID, f"bld{_SUFFIX}"),
    "runs/id": ("The id of a run.", _ID, f"run{_SUFFIX}"),
    "workflow-runs/id": ("The id of a workflow run.", _ID, f"wfr{_SUFFIX}"),
    "audit/id": ("The number of an event.", {"type": "string", "pattern": "^[0-9]{1,18}$"}, "4711"),
    "tokens/id": ("The id of a token.", _ID, f"tok{_SUFFIX}"),
}
"""By name, or by the path's first segment and the name: description, schema, example."""


def path_parameters(path: str) -> list[dict[str, Any]]:
    """The parameters of a path such as `/runs/{id}`. Raises LookupError for one that nobody has described."""
    segment = path.split("/")[1]
    return [_path_parameter(segment, name) for name in re.findall(r"\{(\w+)\}", path)]


def query_parameters(schema: dict[str, Any]) -> list[dict[str, Any]]:
    """The parameters that the properties of a query string's schema are."""
    required = schema.get("required", [])
    return [_query_parameter(name, value, name in required) for name, value in schema.get("properties", {}).items()]


def _path_parameter(segment: str, name: str) -> dict[str, Any]:
    described = _PATH.get(f"{segment}/{name}") or _PATH.get(name)
    if described is None:
        raise LookupError(f"{{{name}}} below /{segment} is not described: name it in libs/common/openapi_parameters.py")
    description, schema, example = described
    return {
        "name": name,
        "in": "path",
        "required": True,
        "description": description,
        "schema": schema,
        "example": example,
    }


def _query_parameter(name: str, schema: dict[str, Any], required: bool) -> dict[str, Any]:  # noqa: FBT001
    value = {key: part for key, part in schema.items() if key not in ("description", "default", "anyOf")}
    # A parameter is there or not: that None is the default is not for the wire.
    for choice in schema.get("anyOf", []):
        if choice != {"type": "null"}:
            value.update(choice)
    if schema.get("default") is not None:
        value["default"] = schema["default"]
    described = {"description": schema["description"]} if "description" in schema else {}
    return {"name": name, "in": "query", "required": required, **described, "schema": value}
