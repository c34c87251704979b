"""The older JSON body."""

import base64
import hashlib
from collections.abc import Callable
from typing import Any

import pytest

from services.registry.legacy import REASON
from tests.backend import Backend
from tests.registry.bundles import bundle, manifest
from tests.registry.running import NOTHING, Answer, RunningRegistry, running_registry


def document(data: bytes | None = None, text: str | None = None, **more: Any) -> dict[str, Any]:
    encoded = text if text is not None else base64.b64encode(bundle() if data is None else data).decode()
    return {"slug": "hello", "version": "1.0.0", "manifest": manifest(), "artifact": {"data": encoded}, **more}


async def post(registry: RunningRegistry, body: Any, token: str = "") -> Answer:
    return await registry.request("POST", "/job-bundles", json=body, token=token)


FORMS: dict[str, Callable[[bytes], str]] = {
    "standard": lambda data: base64.b64encode(data).decode(),
    "standard without padding": lambda data: base64.b64encode(data).decode().rstrip("="),
    "url-safe": lambda data: base64.urlsafe_b64encode(data).decode(),
    "url-safe without padding": lambda data: base64.urlsafe_b64encode(data).decode().rstrip("="),
    "in lines": lambda data: base64.encodebytes(data).decode(),
    "data URL": lambda data: "data:application/gzip;base64," + base64.b64encode(data).decode(),
    "data URL with parameters": lambda data: "data:a/b;x=y;base64," + base64.urlsafe_b64encode(data).decode(),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("filling", ["", "x", "xx"])  # so that all lengths of padding occur
async def test_every_form_of_base64_is_the_same_tarball(registry: RunningRegistry, form: str, filling: str) -> None:
    data = bundle(files={"f": filling}) + b""
    answer = await post(registry, document(text=FORMS[form](data)))
    assert answer.status == 201
    assert answer.json["data"]["version"]["digest"] == f"sha256:{hashlib.sha256(data).hexdigest()}"
    assert registry.keys("uploads/") == []


async def test_what_describes_the_bundle_is_kept_with_it(registry: RunningRegistry) -> None:
    body = document(displayName="Hello", description="Says it", metadata={"team": "a"}, capabilityFlags=["network"])
    body["artifact"] |= {
        "filename": "hello.tgz",
        "contentType": "application/gzip",
        "checksum": hashlib.sha256(bundle()).hexdigest().upper(),
    }
    kept = (await post(registry, body)).json["data"]["bundle"]
    assert (kept["slug"], kept["latest"], kept["createdBy"]) == ("hello", "1.0.0", "admin")
    assert (kept["displayName"], kept["description"]) == ("Hello", "Says it")
    assert kept["metadata"] == {"team": "a", "capabilityFlags": ["network"]}


async def test_it_is_the_same_operation_as_put(registry: RunningRegistry) -> None:
    publisher = await registry.token_for("publisher", "bundles:publish")
    assert (await post(registry, document())).status == 201
    assert (await post(registry, document(bundle(compression="zstd")))).status == 200
    other = bundle(files={"x": "y"})
    conflict = await post(registry, document(other))
    assert (conflict.status, conflict.json["difference"]["added"]) == (409, 1)
    assert (await post(registry, document(other, force=True), publisher)).status == 403
    replaced = await post(registry, document(other, force=True))
    assert replaced.status == 201
    version = replaced.json["data"]["version"]
    assert (version["revision"], version["reason"], version["replacedBy"]) == (2, REASON, "admin")
    assert await registry.actions() == ["version.published", "version.force_refused", "version.replaced"]
    assert len(registry.keys()) == 2


async def test_immutable_version_is_replaced_by_administrators_only(registry: RunningRegistry) -> None:
    forcer = await registry.token_for("forcer", "bundles:publish", "bundles:force")
    assert (await post(registry, document(immutable=True))).json["data"]["version"]["immutable"] is True
    other = bundle(files={"x": "y"})
    refused = await registry.publish(other, token=forcer, force="true", reason="r")
    assert (refused.status, refused.json["type"]) == (409, "urn:stowage:problem:version-immutable")
    event = (await registry.audit())[-1]
    assert (event["action"], event["actor"]) == ("version.force_refused", "forcer")
    assert (await registry.publish(other, force="true", reason="r")).status == 200


WRONG: dict[str, dict[str, Any]] = {
    "not base64": document(text="§§§§"),
    "impossible length": document(text="AAAAA"),
    "data URL without base64": document(text="data:text/plain,hello"),
    "other checksum": document() | {"artifact": {"data": base64.b64encode(bundle()).decode(), "checksum": "0" * 64}},
    "manifest of another version": document(manifest=manifest(version="2.0.0")),
    "manifest without a version": document(manifest={"name": "hello"}),
    "manifest of another name": document(manifest=manifest("other")),
    "tarball of another version": document(bundle(version="2.0.0")),
    "no tarball": document(b"hello, this is text"),
    "damaged tarball": document(bundle()[:-9]),
    "NUL": document(description="\0"),
    "unknown field": document(immutible=True),
    "no slug": {key: value for key, value in document().items() if key != "slug"},
    "slug that is none": document(slug="../x"),
}


@pytest.mark.parametrize("name", WRONG)
async def test_malformed_body_is_refused_and_leaves_nothing(registry: RunningRegistry, name: str) -> None:
    answer = await post(registry, WRONG[name])
    assert (answer.status, answer.json["status"]) == (400, 400)
    assert answer.json["requestId"] == answer.headers["X-Request-Id"]
    assert await registry.residue() == NOTHING


async def test_body_beyond_the_limit_is_refused(backend: Backend) -> None:
    async with running_registry(backend, max_json_publish_bytes=1000) as registry:
        assert (await post(registry, document(text="A" * 1000))).status == 413
        assert await registry.residue() == NOTHING
