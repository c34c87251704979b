"""Documentation that can drift is compared with the code."""

import re
from collections.abc import Iterable
from typing import Any

import pytest

from libs.common.auth import Scope
from libs.common.settings import ServiceSettings
from services.builder.app import create_app as builder_app
from services.builder.settings import BuilderSettings
from services.registry.app import create_app as registry_app
from services.registry.settings import RegistrySettings
from services.runner.app import create_app as runner_app
from services.runner.settings import RunnerSettings
from tests.e2e.stack import REPOSITORY

_SETTINGS: dict[str, Any] = {
    "database_url": "postgresql://nowhere/none",
    "s3_endpoint": "http://127.0.0.1:1",
    "s3_access_key": "none",
    "s3_secret_key": "none",
}
_TOKEN: dict[str, Any] = {"registry_url": "http://127.0.0.1:1", "service_token": "none"}
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


def test_every_scope_is_documented() -> None:
    assert {scope.value for scope in Scope} <= set(re.findall(r"^\| `([a-z:]+)` \|", _OPERATIONS, re.MULTILINE))


def test_every_route_is_documented() -> None:
    page = (REPOSITORY / "docs/http.md").read_text()
    documented = set(re.findall(r"`(GET|PUT|POST|PATCH|DELETE) (/[^`?]*)\??[^`]*`", page))
    made = [
        registry_app(RegistrySettings(**_SETTINGS)),
        builder_app(BuilderSettings(**_SETTINGS, **_TOKEN)),
        runner_app(RunnerSettings(**_SETTINGS, **_TOKEN)),
    ]
    routes = {
        (route.method, route.resource.canonical)
        for application in made
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


def test_relative_links_lead_somewhere() -> None:
    pages = [
        REPOSITORY / "README.md",
        *(REPOSITORY / "docs").rglob("*.md"),
        *(REPOSITORY / "examples").glob("*/README.md"),
    ]
    links = [(page, link) for page in pages for link in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text())]
    assert links
    assert [f"{page.name}: {link}" for page, link in links if not (page.parent / link).exists()] == []
