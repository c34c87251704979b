"""Documentation that can drift is compared with the code."""

import re
from collections.abc import Iterable
from pathlib import Path

import pytest

from libs.common.auth import Scope
from libs.common.settings import ServiceSettings
from services.builder.settings import BuilderSettings
from services.registry.settings import RegistrySettings
from services.runner.settings import RunnerSettings
from tests.common.applications import applications
from tests.e2e.stack import REPOSITORY

_OPERATIONS = (REPOSITORY / "docs/operations.md").read_text()


@pytest.mark.parametrize("settings", [RegistrySettings, BuilderSettings, RunnerSettings])
def test_every_setting_is_documented(settings: type[ServiceSettings]) -> None:
    documented = set(re.findall(r"`([A-Z][A-Z0-9_]+)`", _OPERATIONS))
    assert {name.upper() for name in settings.model_fields} <= documented


def test_no_setting_is_documented_that_does_not_exist() -> None:
    rows = re.findall(r"^\| ((?:`[A-Z][A-Z0-9_]+`(?:, )?)+) \|", _OPERATIONS, re.MULTILINE)
    documented = {name for row in rows for name in re.findall(r"`([A-Z0-9_]+)`", row)}
    known: Iterable[type[ServiceSettings]] = (RegistrySettings, BuilderSettings, RunnerSettings)
    assert documented <= {name.upper() for settings in known for name in settings.model_fields}


def test_each_row_of_a_table_is_in_one() -> None:
    parts = [part for page in _pages() for part in page.read_text().split("\n\n") if part.startswith("| ")]
    assert parts
    assert [part.split("\n", 1)[0] for part in parts if not re.match(r"\|.*\n\|(?: ?-+ ?\|)+(?:\n|$)", part)] == []


def test_every_scope_is_documented() -> None:
    assert {scope.value for scope in Scope} <= set(re.findall(r"^\| `([a-z:]+)` \|", _OPERATIONS, re.MULTILINE))


def test_every_route_is_documented() -> None:
    page = (REPOSITORY / "docs/http.md").read_text()
    documented = set(re.findall(r"`(GET|PUT|POST|PATCH|DELETE) (/[^`?]*)\??[^`]*`", page))
    routes = {
        (route.method, route.resource.canonical)
        for application in applications().values()
        for route in application.router.routes()
        if route.resource is not None and route.method != "HEAD"
    }
    assert len(routes) > 30
    assert {(method, _nameless(path)) for method, path in routes} == {
        (method, _nameless(path)) for method, path in documented
    }


def _nameless(path: str) -> str:
    """The path without the names of its variables."""
    return re.sub(r"\{[^}]*\}", "{}", path)


def _pages() -> list[Path]:
    return [
        REPOSITORY / "README.md",
        *(REPOSITORY / "docs").rglob("*.md"),
        *(REPOSITORY / "examples").glob("*/README.md"),
    ]


def test_relative_links_lead_somewhere() -> None:
    links = [(page, link) for page in _pages() for link in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text())]
    assert links
    assert [f"{page.name}: {link}" for page, link in links if not (page.parent / link).exists()] == []
