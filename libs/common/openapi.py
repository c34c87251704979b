"""The OpenAPI document (3.1) of a service, made of what its routes declare and of the wire models."""

import json
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, Literal

from aiohttp import web
from pydantic import BaseModel
from pydantic.alias_generators import to_camel
from pydantic.json_schema import GenerateJsonSchema, models_json_schema

from libs.common import models
from libs.common.api import Answer, Content, Header, Kind, Operation, operation_of
from libs.common.openapi_parameters import path_parameters, query_parameters
from libs.common.problem_types import PREFIX, PROBLEM_TYPES
from libs.common.samples import sample_of
from libs.common.version import VERSION

_SCHEMAS = "#/components/schemas/"
_RESPONSES = "#/components/responses/"
_EXAMPLES = "#/components/examples/"
_ALWAYS = ("invalid-request", "internal")
_WITH_TOKEN = (
    "unauthenticated",
    "forbidden",
    "too-many-requests",
    "too-many-unknown-tokens",
    "unavailable",
    "database-unavailable",
    "object-store-unavailable",
    "registry-unavailable",
)
_WITH_JSON = ("too-large", "unsupported-media-type", "body-stalled", "body-damaged")
_REQUEST_ID = "req_019aa5c3e1f200112233445566778899"

_ERROR_HEADERS = {
    HTTPStatus.UNAUTHORIZED: Header("WWW-Authenticate", "The scheme of tokens.", 'Bearer realm="stowage"'),
    HTTPStatus.TOO_MANY_REQUESTS: Header("Retry-After", "In how many seconds to ask again.", "5"),
    HTTPStatus.SERVICE_UNAVAILABLE: Header("Retry-After", "In how many seconds to ask again.", "2"),
}
_ETAG = Header("ETag", "Changes with the answer.", '"9f86d081884c7d659a2feaa0c55ad015"')
_IF_NONE_MATCH = Header("If-None-Match", "What the caller has: 304 for it.", '"9f86d081884c7d659a2feaa0c55ad015"')
_INTRODUCTION = """\
JSON names are camelCase, times RFC 3339 in UTC with milliseconds, sizes bytes, digests `sha256:<hex>`. Lists come in
pages: `next` is the `cursor` of the next one, null on the last. Unknown query parameters and body fields are refused.

Every error is a problem document (RFC 9457) with a stable `type`. The header `X-Request-Id` is taken from the request
if it is 1 to 64 of `A-Za-z0-9._:-`, otherwise made; it is on every answer, in the logs and in the audit trail. What
takes GET takes HEAD as well."""


@dataclass(frozen=True, slots=True)
class Tag:
    """A group of routes: those whose path begins with one of `segments`."""

    name: str
    description: str
    segments: tuple[str, ...]


COMMON_TAG = Tag("Service", "What every service has. No token is needed.", ())


def make_document(service: str, routes: Iterable[web.RouteDef], tags: Sequence[Tag]) -> dict[str, Any]:
    """The document of a service with these routes. Raises LookupError for what is declared in part only."""
    declared = [(route, found) for route in routes if (found := operation_of(route.handler)) is not None]
    schemas = _Schemas([operation for _, operation in declared])
    paths: dict[str, dict[str, Any]] = defaultdict(dict)
    for route, operation in declared:
        path = re.sub(r"\{(\w+):[^}]*\}", r"{\1}", route.path)
        paths[path][route.method.lower()] = _operation(route, path, operation, schemas, _tag_of(path, operation, tags))
    return {
        "openapi": "3.1.0",
        "info": {"title": f"Stowage {service}", "version": VERSION, "description": _INTRODUCTION},
        "servers": [{"url": "/"}],
        "tags": [{"name": tag.name, "description": tag.description} for tag in (*tags, COMMON_TAG)],
        "paths": dict(paths),
        "components": {
            "securitySchemes": {
                "bearer": {
                    "type": "http",
                    "scheme": "bearer",
                    "description": "A token with the scope that the operation names; `admin` has all.",
                }
            },
            "schemas": schemas.components,
            "responses": {_name(status): _problem(status, kinds) for status, kinds in _COMMON.items()},
            "examples": {
                f"{status.value}-{kind}": {"value": _problem_sample(status, kind)}
                for status, kind in _kinds_of(operation for _, operation in declared)
            },
        },
    }


class _Schemas:
    """The schemas of all models that the operations name. Those of query strings become parameters instead."""

    def __init__(self, operations: Sequence[Operation]) -> None:
        wanted: list[tuple[type[BaseModel], Literal["validation", "serialization"]]] = [
            (models.Problem, "serialization")
        ]
        for operation in operations:
            if operation.query is not None:
                wanted.append((operation.query, "validation"))
            if isinstance(operation.body, type):
                wanted.append((operation.body, "validation"))
            wanted += [
                (answer.body, "serialization") for answer in operation.answers.values() if isinstance(answer.body, type)
            ]
        self._references, made = models_json_schema(
            list(dict.fromkeys(wanted)), ref_template=_SCHEMAS + "{model}", schema_generator=_WithoutTitles
        )
        self.components: dict[str, Any] = json.loads(_named(json.dumps(made["$defs"])))
        self._queries = {
            operation.query: self.components.pop(self._name(operation.query, "validation"))
            for operation in {operation.query: operation for operation in operations if operation.query}.values()
        }

    def reference(self, model: type[BaseModel], mode: Literal["validation", "serialization"]) -> dict[str, Any]:
        return {"$ref": _SCHEMAS + self._name(model, mode)}

    def query(self, model: type[BaseModel]) -> dict[str, Any]:
        return dict(self._queries[model])

    def _name(self, model: Any, mode: Literal["validation", "serialization"]) -> str:
        return _named(self._references[model, mode]["$ref"]).removeprefix(_SCHEMAS)


def _named(text: str) -> str:
    """`text` with `VersionPage` for what pydantic calls `Page_Version_`."""
    return re.sub(r"\bPage_(\w+)_\b", r"\1Page", text)


class _WithoutTitles(GenerateJsonSchema):
    """Schemas in which only models have titles: those of fields would repeat their names."""

    def field_title_should_be_set(self, _schema: object) -> bool:
        return False


def _operation(route: web.RouteDef, path: str, declared: Operation, schemas: _Schemas, tag: str) -> dict[str, Any]:
    if not declared.summary:
        raise LookupError(f"{route.method} {path} has no summary: its handler needs a docstring")
    scope = f"Needs the scope `{declared.scope}`." if declared.scope else "Needs no token."
    rendered: dict[str, Any] = {
        "operationId": to_camel(route.handler.__name__.lstrip("_")),
        "tags": [tag],
        "summary": declared.summary.rstrip("."),
        "description": f"{declared.description}\n\n{scope}".strip(),
        "security": [{"bearer": [declared.scope.value]}] if declared.scope else [],
        "responses": _responses(declared, schemas),
    }
    conditional = _is_conditional(route, declared)
    if conditional:
        rendered["responses"]["200"]["headers"] |= _headers([_ETAG])
        rendered["responses"]["304"] = {"description": "The caller has it already.", "headers": _headers([_ETAG])}
    parameters = [
        *path_parameters(path),
        *(query_parameters(schemas.query(declared.query)) if declared.query else []),
        *(_header_parameter(header) for header in (*declared.headers, *([_IF_NONE_MATCH] if conditional else []))),
    ]
    if parameters:
        rendered["parameters"] = parameters
    if declared.body is not None:
        rendered["requestBody"] = {"required": True, **_body(declared.body, schemas, "validation")}
    return rendered


def _is_conditional(route: web.RouteDef, declared: Operation) -> bool:
    """Whether libs.common.conditional gives the answer its tag."""
    answer = declared.answers.get(HTTPStatus.OK)
    return route.method == "GET" and declared.scope is not None and answer is not None and isinstance(answer.body, type)


def _tag_of(path: str, operation: Operation, tags: Sequence[Tag]) -> str:
    if operation.scope is None:
        return COMMON_TAG.name
    segment = path.split("/")[1]
    for tag in tags:
        if segment in tag.segments:
            return tag.name
    raise LookupError(f"{path} is in no group: name /{segment} in a Tag of the service")


def _responses(declared: Operation, schemas: _Schemas) -> dict[str, Any]:
    rendered = {str(status): _answer(status, answer, schemas) for status, answer in sorted(declared.answers.items())}
    for status, kinds in sorted(_problems_of(declared).items()):
        shared = kinds == _COMMON.get(status)
        rendered[str(status.value)] = {"$ref": f"{_RESPONSES}{_name(status)}"} if shared else _problem(status, kinds)
    return rendered


def _name(status: HTTPStatus) -> str:
    return status.phrase.replace(" ", "")


def _kinds_of(operations: Iterable[Operation]) -> list[tuple[HTTPStatus, str]]:
    """Every problem that may be answered, or is common."""
    every = [_COMMON, *(_problems_of(operation) for operation in operations)]
    return sorted({(status, kind) for problems in every for status, kinds in problems.items() for kind in kinds})


def _problems_of(declared: Operation) -> Mapping[HTTPStatus, list[str]]:
    """The kinds of problems that an operation may answer with, by status."""
    common: tuple[Kind, ...] = (
        *_ALWAYS,
        *(_WITH_TOKEN if declared.scope else ()),
        *(_WITH_JSON if isinstance(declared.body, type) else ()),
    )
    return _by_status((*common, *(kind for kind in declared.errors if kind not in common)))


def _by_status(kinds: Iterable[Kind]) -> dict[HTTPStatus, list[str]]:
    grouped: dict[HTTPStatus, list[str]] = defaultdict(list)
    for kind in kinds:
        status, name = kind if isinstance(kind, tuple) else (None, kind)
        if name not in PROBLEM_TYPES:
            raise LookupError(f"there is no problem {name}: describe it in libs/common/problem_types.py")
        for each in (HTTPStatus(status),) if status else PROBLEM_TYPES[name].statuses:
            grouped[each].append(name)
    return dict(grouped)


_COMMON = _by_status((*_ALWAYS, *_WITH_TOKEN, *_WITH_JSON))


def _problem(status: HTTPStatus, kinds: Sequence[str]) -> dict[str, Any]:
    header = _ERROR_HEADERS.get(status)
    return {
        "description": status.phrase,
        "headers": _headers([header] if header else []),
        "content": {
            "application/problem+json": {
                "schema": {
                    "$ref": f"{_SCHEMAS}Problem",
                    "properties": {
                        "type": {"enum": [PREFIX + kind for kind in kinds]},
                        "status": {"const": status.value},
                    },
                },
                "examples": {kind: {"$ref": f"{_EXAMPLES}{status.value}-{kind}"} for kind in kinds},
            }
        },
    }


def _problem_sample(status: HTTPStatus, kind: str) -> dict[str, Any]:
    return {
        "type": PREFIX + kind,
        "title": status.phrase,
        "status": status.value,
        "detail": PROBLEM_TYPES[kind].detail,
        "requestId": _REQUEST_ID,
    }


def _answer(status: int, answer: Answer, schemas: _Schemas) -> dict[str, Any]:
    default = answer.body.description if isinstance(answer.body, Content) else HTTPStatus(status).phrase
    rendered: dict[str, Any] = {
        "description": answer.description or default,
        "headers": _headers(answer.headers),
    }
    return rendered if answer.body is None else {**rendered, **_body(answer.body, schemas, "serialization")}


def _body(
    body: type[BaseModel] | Content, schemas: _Schemas, mode: Literal["validation", "serialization"]
) -> dict[str, Any]:
    if isinstance(body, Content):
        text = {"schema": {"type": "string"}} if body.example else {}
        example = {"example": body.example} if body.example else {}
        described = {} if mode == "serialization" else {"description": body.description}
        return {**described, "content": {name: {**text, **example} for name in body.media_types}}
    return {
        "content": {
            "application/json": {"schema": schemas.reference(body, mode), "example": sample_of(body)},
        }
    }


def _headers(headers: Iterable[Header]) -> dict[str, Any]:
    """The headers of an answer, and the request id, which all have."""
    request_id = Header("X-Request-Id", "The request's id in the logs and the audit trail.", _REQUEST_ID)
    return {
        header.name: {
            "description": header.description,
            "required": True,
            "schema": {"type": "string"},
            "example": header.example,
        }
        for header in (request_id, *headers)
    }


def _header_parameter(header: Header) -> dict[str, Any]:
    return {
        "name": header.name,
        "in": "header",
        "description": header.description,
        "schema": {"type": "string"},
        "example": header.example,
    }
