"""Every route that changes something says so in the audit trail, in all three services; new ones are named here."""

import base64
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from services.builder.app import create_app as builder_app
from services.builder.settings import BuilderSettings
from services.registry.app import create_app as registry_app
from services.registry.settings import RegistrySettings
from services.runner.app import create_app as runner_app
from services.runner.settings import RunnerSettings
from tests.backend import Backend
from tests.builder.examples import WrittenExample
from tests.builder.running import running_builder
from tests.registry.bundles import bundle, manifest
from tests.registry.running import RunningRegistry, running_registry
from tests.runner.running import OPEN, running_runner

_REASON = "a test"


@dataclass
class Product:
    """The three services, and what the writes before left for those after them, by name."""

    registry: RunningRegistry
    builder_url: str
    runner_url: str
    session: aiohttp.ClientSession
    kept: dict[str, str]

    async def send(self, service: str, method: str, path: str, *, token: str | None = None, **options: Any) -> Any:
        """A request that succeeds, or with a `token` that is not the administrator's is refused; the answer."""
        url = {"registry": self.registry.url, "builder": self.builder_url, "runner": self.runner_url}[service]
        headers = {"Authorization": f"Bearer {token or self.registry.token}"}
        async with self.session.request(method, url + path, headers=headers, **options) as response:
            assert (response.status < 300) is (token is None), await response.text()
            return await response.json()

    async def last_event(self) -> int:
        """The highest id so far."""
        (row,) = await self.registry.backend.fetch("SELECT coalesce(max(id), 0) AS id FROM audit.events")
        return int(row["id"])

    async def actions(self, *, after: int) -> set[str]:
        """The actions of later events."""
        rows = await self.registry.backend.fetch("SELECT action FROM audit.events WHERE id > $1", after)
        return {row["action"] for row in rows}


Write = Callable[[Product], Awaitable[Any]]


@pytest.fixture
async def product(backend: Backend, tmp_path: Path) -> AsyncIterator[Product]:
    """Registry, builder and runner in this process."""
    (tmp_path / "work").mkdir()
    WrittenExample(tmp_path / "examples").python("built")
    async with AsyncExitStack() as stack:
        registry = await stack.enter_async_context(running_registry(backend))
        options: dict[str, Any] = {"work_dir": tmp_path / "work", "examples_dir": tmp_path / "examples"}
        builder = await stack.enter_async_context(
            running_builder(
                backend, registry_url=registry.url, service_token=registry.token, token=registry.token, **options
            )
        )
        runner = await stack.enter_async_context(running_runner(backend, registry, tmp_path / "scratch", **OPEN))
        session = await stack.enter_async_context(aiohttp.ClientSession())
        yield Product(registry, builder.url, runner.url, session, {})


def _legacy_body() -> dict[str, Any]:
    data = base64.b64encode(bundle("legacy")).decode()
    return {"slug": "legacy", "version": "1.0.0", "manifest": manifest("legacy"), "artifact": {"data": data}}


async def _make_token(product: Product) -> None:
    body = {"subject": "weak", "scopes": ["bundles:read", "bundles:publish"]}
    made = await product.send("registry", "POST", "/tokens", json=body)
    product.kept |= {"weak": made["token"], "weak_id": made["id"]}


async def _start_run(product: Product) -> None:
    product.kept["run"] = (await product.send("runner", "POST", "/runs", json={"bundle": "sleeper@1.0.0"}))["id"]


async def _start_workflow(product: Product) -> None:
    started = await product.send("runner", "POST", "/workflows/flow/runs", json={})
    product.kept["workflow_run"] = started["id"]


async def _publish_twice(product: Product) -> None:
    path = "/job-bundles/hello/versions/1.0.0"
    await product.send("registry", "PUT", path, data=bundle())
    forced = {"force": "true", "reason": _REASON}
    weak = product.kept["weak"]
    await product.send("registry", "PUT", path, data=bundle(files={"a": "b"}), params=forced, token=weak)
    await product.send("registry", "PUT", path, data=bundle(files={"a": "b"}), params=forced)
    sleeper = bundle("sleeper", files={"main.py": "import time\ndef handler(context):\n    time.sleep(60)\n"})
    await product.send("registry", "PUT", "/job-bundles/sleeper/versions/1.0.0", data=sleeper)


async def _patch_bundle(product: Product) -> None:
    path = "/job-bundles/hello"
    refused = {"allowedPlatforms": ["darwin"], "reason": _REASON}
    await product.send("registry", "PATCH", path, json=refused, token=product.kept["weak"])
    await product.send("registry", "PATCH", path, json={"displayName": "Hello"})


async def _patch_version(product: Product) -> None:
    path = "/job-bundles/hello/versions/1.0.0"
    quarantine = {"status": "quarantined", "reason": _REASON}
    await product.send("registry", "PATCH", path, json=quarantine, token=product.kept["weak"])
    for status in ("deprecated", "active", "yanked", "active", "quarantined", "active"):
        await product.send("registry", "PATCH", path, json={"status": status, "reason": _REASON})
    for immutable in (True, False):
        await product.send("registry", "PATCH", path, json={"immutable": immutable, "reason": _REASON})


async def _revoke_and_use(product: Product) -> None:
    await product.send("registry", "DELETE", f"/tokens/{product.kept['weak_id']}")
    await product.send("runner", "POST", "/runs", json={"bundle": "hello"}, token=product.kept["weak"])


def _json(service: str, method: str, path: str, body: Any) -> Write:
    async def write(product: Product) -> None:
        await product.send(service, method, path.format(**product.kept), json=body)

    return write


# In an order in which each finds what it needs. Routes, what to do, and the actions that have to be there afterwards.
_WRITES: list[tuple[str, Write, set[str]]] = [
    ("registry POST /tokens", _make_token, {"token.created"}),
    (
        "registry PUT /job-bundles/{slug}/versions/{version}",
        _publish_twice,
        {"version.published", "version.replaced", "version.force_refused"},
    ),
    ("registry POST /job-bundles", _json("registry", "POST", "/job-bundles", _legacy_body()), {"version.published"}),
    (
        "registry POST /job-bundles/{slug}/versions/{version}/rollback",
        _json("registry", "POST", "/job-bundles/hello/versions/1.0.0/rollback", {"toRevision": 1, "reason": _REASON}),
        {"version.rolled_back"},
    ),
    ("registry PATCH /job-bundles/{slug}", _patch_bundle, {"bundle.updated", "bundle.update_refused"}),
    (
        "registry PATCH /job-bundles/{slug}/versions/{version}",
        _patch_version,
        {
            *("version.deprecated", "version.reactivated", "version.yanked", "version.unyanked"),
            *("version.quarantined", "version.released", "version.updated", "version.update_refused"),
        },
    ),
    ("registry PUT /jobs/{slug}", _json("registry", "PUT", "/jobs/job", {"bundle": "sleeper@1.0.0"}), {"job.created"}),
    (
        "registry PUT /workflows/{slug}",
        _json("registry", "PUT", "/workflows/flow", {"steps": [{"name": "one", "job": "job"}]}),
        {"workflow.created"},
    ),
    (
        "builder POST /examples/import",
        _json("builder", "POST", "/examples/import", {"example": "example"}),
        {"import.requested"},
    ),
    ("runner POST /runs", _start_run, {"run.accepted"}),
    ("runner POST /runs/{id}/cancel", _json("runner", "POST", "/runs/{run}/cancel", None), {"run.cancel_requested"}),
    ("runner POST /workflows/{slug}/runs", _start_workflow, {"workflow_run.accepted"}),
    (
        "runner POST /workflow-runs/{id}/cancel",
        _json("runner", "POST", "/workflow-runs/{workflow_run}/cancel", None),
        {"workflow_run.cancel_requested"},
    ),
    ("registry DELETE /tokens/{id}", _revoke_and_use, {"token.revoked", "token.refused"}),
]

_CHANGES_NOTHING = {
    "registry POST /tokens/introspect": "it asks; that a token was used which works no more is an event by itself",
    "registry POST /artifacts/uses": "it keeps artifacts that runs use from being collected; the runs have events",
}


def _write_routes() -> set[str]:
    nowhere: dict[str, Any] = {
        "database_url": "postgresql://nowhere/none",
        "s3_endpoint": "http://127.0.0.1:1",
        "s3_access_key": "none",
        "s3_secret_key": "none",
    }
    other: dict[str, Any] = {"registry_url": "http://127.0.0.1:1", "service_token": "none"}
    applications: dict[str, web.Application] = {
        "registry": registry_app(RegistrySettings(**nowhere)),
        "builder": builder_app(BuilderSettings(**nowhere, **other)),
        "runner": runner_app(RunnerSettings(**nowhere, **other)),
    }
    return {
        f"{service} {route.method} {route.resource.canonical}"
        for service, application in applications.items()
        for route in application.router.routes()
        if route.resource is not None and route.method not in ("GET", "HEAD")
    }


def test_every_route_that_writes_is_known_here() -> None:
    assert _write_routes() == {route for route, _, _ in _WRITES} | set(_CHANGES_NOTHING)


async def test_every_write_and_every_refused_force_leaves_an_event(product: Product) -> None:
    for route, write, expected in _WRITES:
        before = await product.last_event()
        await write(product)
        found = await product.actions(after=before)
        assert expected <= found, f"{route} left {sorted(found)}"
