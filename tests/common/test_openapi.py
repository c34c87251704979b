"""The OpenAPI documents of the services: valid, whole, and with examples that are what they are examples of."""

import ast
import json
import re
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest
from aiohttp import web
from aiohttp.test_utils import make_mocked_request
from openapi_spec_validator import validate

from libs.common.api import Answer, operation
from libs.common.auth import Scope
from libs.common.errors import StowageError
from libs.common.models import Artifact, Health, Page, Request
from libs.common.openapi import Tag, make_document
from libs.common.problem_types import PROBLEM_TYPES
from libs.common.problems import status_of
from libs.common.rate import RequestLimit
from libs.common.reference import reference_routes
from libs.common.reference_page import render_page
from libs.common.version import VERSION
from libs.common.web import create_application
from tests.common.applications import applications
from tests.e2e.stack import REPOSITORY

_SERVICES = ("registry", "builder", "runner")
_FAILURES_OF_BUILDS = {"lock-file-missing", "command-timed-out", "command-failed", "packing-failed"}
"""These are in the records of builds, and never answered."""


@pytest.fixture(scope="module")
async def documents() -> dict[str, dict[str, Any]]:
    """Each service's document, as it is served."""
    return {name: await _document_of(application) for name, application in applications().items()}


async def _document_of(application: web.Application) -> dict[str, Any]:
    (handler,) = [
        route.handler
        for route in application.router.routes()
        if route.resource is not None and (route.method, route.resource.canonical) == ("GET", "/openapi.json")
    ]
    answer = await handler(make_mocked_request("GET", "/openapi.json"))
    assert isinstance(answer, web.Response)
    assert isinstance(answer.body, bytes)
    document: dict[str, Any] = json.loads(answer.body)
    return document


def _operations(document: Mapping[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, item in document["paths"].items():
        for method, found in item.items():
            yield method, path, found


@pytest.mark.parametrize("service", _SERVICES)
def test_the_document_is_valid(documents: dict[str, dict[str, Any]], service: str) -> None:
    validate(documents[service])


@pytest.mark.parametrize("service", _SERVICES)
def test_every_route_is_in_the_document(documents: dict[str, dict[str, Any]], service: str) -> None:
    served = {
        (route.method.lower(), route.resource.canonical)
        for route in applications()[service].router.routes()
        if route.resource is not None and route.method != "HEAD"
    }
    assert {(method, path) for method, path, _ in _operations(documents[service])} == served


@pytest.mark.parametrize("service", _SERVICES)
def test_every_operation_names_its_scope_and_its_common_errors(
    documents: dict[str, dict[str, Any]], service: str
) -> None:
    for method, path, found in _operations(documents[service]):
        assert {"400", "500"} <= set(found["responses"]), (method, path)
        if found["security"]:
            ((scope,),) = [requirement["bearer"] for requirement in found["security"]]
            assert Scope(scope)
            assert {"401", "403", "429", "503"} <= set(found["responses"]), (method, path)
        else:
            assert path in ("/livez", "/readyz", "/metrics", "/openapi.json", "/docs")


@pytest.mark.parametrize("service", _SERVICES)
def test_every_example_is_what_its_schema_says(documents: dict[str, dict[str, Any]], service: str) -> None:
    document = documents[service]
    checked = 0
    for found, examples in _contents(document, document):
        schema = {**found, "components": document["components"]}
        validator = jsonschema_rs.Draft202012Validator(schema, validate_formats=True)
        for example in examples:
            assert list(validator.iter_errors(example)) == [], json.dumps(example)
            checked += 1
    assert checked > 50


def _contents(document: dict[str, Any], part: Any) -> Iterator[tuple[dict[str, Any], list[Any]]]:
    """Every schema that has examples, with these."""
    if isinstance(part, dict):
        if "schema" in part and "example" in part:
            yield part["schema"], [part["example"]]
        if "schema" in part and "examples" in part:
            known = document["components"]["examples"]
            yield (
                part["schema"],
                [known[example["$ref"].rpartition("/")[2]]["value"] for example in part["examples"].values()],
            )
        for value in part.values():
            yield from _contents(document, value)
    elif isinstance(part, list):
        for value in part:
            yield from _contents(document, value)


@pytest.mark.parametrize("service", _SERVICES)
def test_every_json_body_and_answer_has_an_example(documents: dict[str, dict[str, Any]], service: str) -> None:
    for _, path, found in _operations(documents[service]):
        for part in [found.get("requestBody", {}), *found["responses"].values()]:
            content = part.get("content", {}).get("application/json")
            if content is not None and path != "/openapi.json":
                assert "example" in content, path


@pytest.mark.parametrize("service", _SERVICES)
def test_names_on_the_wire_are_camel_case(documents: dict[str, dict[str, Any]], service: str) -> None:
    for name, schema in documents[service]["components"]["schemas"].items():
        assert re.fullmatch(r"[A-Z][A-Za-z]*", name)
        for key in schema.get("properties", {}):
            assert re.fullmatch(r"[a-z][A-Za-z0-9]*", key), (name, key)
    for _, path, found in _operations(documents[service]):
        for parameter in found.get("parameters", []):
            assert parameter["in"] == "header" or re.fullmatch(r"[a-z][A-Za-z0-9]*", parameter["name"]), path


def test_every_kind_of_problem_in_the_code_is_in_the_catalogue() -> None:
    sources = [*(REPOSITORY / "services").rglob("*.py"), *(REPOSITORY / "libs").rglob("*.py")]
    found = {kind: path.name for path in sources for kind in _kinds_in(path)}
    assert len(found) > 30
    assert {kind: found[kind] for kind in found.keys() - PROBLEM_TYPES.keys() - _FAILURES_OF_BUILDS} == {}


def _kinds_in(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        match node:
            case ast.keyword(arg="kind", value=ast.Constant(value=str(kind))) if "-" in kind:
                yield kind


def test_every_domain_error_has_a_kind_with_its_status() -> None:
    for error in StowageError.__subclasses__():
        if error.__module__ == "libs.common.errors":
            assert status_of(error) in PROBLEM_TYPES[error.kind].statuses, error


def test_the_page_shows_every_operation_and_every_schema_without_scripts(
    documents: dict[str, dict[str, Any]],
) -> None:
    document = documents["registry"]
    page = render_page(document)
    for _, _, found in _operations(document):
        assert f'<article id="{found["operationId"]}">' in page
    for name in document["components"]["schemas"]:
        assert f'id="schema-{name}"' in page
    assert set(re.findall(r'href="#([^"]+)"', page)) <= set(re.findall(r'id="([^"]+)"', page))
    assert "<script" not in page
    assert "style=" not in page
    assert "http://" not in page.replace("http://www.w3.org", "")


def test_the_version_is_that_of_the_project() -> None:
    with (REPOSITORY / "pyproject.toml").open("rb") as file:
        assert tomllib.load(file)["project"]["version"] == VERSION


async def test_a_route_that_is_declared_in_part_is_refused() -> None:
    async def silent(_request: web.Request) -> web.Response:
        return web.Response()

    with pytest.raises(TypeError, match="does not say what it promises"):
        create_application(
            "x",
            routes=[web.get("/x", silent)],
            authenticate=None,  # type: ignore[arg-type]
            checks={},
            tags=[],
            limit=RequestLimit(None, 1, (), "NONE"),
        )


class _Unseen(Request):
    """A body without an example."""


@pytest.mark.parametrize(
    ("path", "options", "complaint"),
    [
        ("/things/{id}", {}, "{id} below /things is not described"),
        ("/other", {}, "is in no group"),
        ("/things", {"errors": ["no-such-kind"]}, "there is no problem no-such-kind"),
        ("/things", {"body": _Unseen}, "there is no example of _Unseen"),
    ],
)
def test_what_a_declaration_lacks_is_said(path: str, options: dict[str, Any], complaint: str) -> None:
    @operation(Scope.ADMIN, **{"answers": {200: Answer(Health)}, **options})
    async def get_thing(_request: web.Request) -> web.Response:
        """Get a thing."""
        return web.Response()

    with pytest.raises(LookupError, match=re.escape(complaint)):
        make_document("x", [web.get(path, get_thing)], [Tag("Things", "", ("things",))])


def test_pages_of_lists_have_names_of_their_own() -> None:
    @operation(Scope.ADMIN, answers={200: Page[Artifact]})
    async def list_things(_request: web.Request) -> web.Response:
        """List things."""
        return web.Response()

    routes = [web.get("/things", list_things)]
    document = make_document("x", routes, [Tag("Things", "", ("things",))])
    assert "ArtifactPage" in document["components"]["schemas"]
    assert reference_routes("x", routes, []) != []
