"""What every answer has and every route does: tags, request ids, allowed methods, origins."""

import asyncio
from typing import Any

import pytest

from libs.common.cursors import encode_cursor
from libs.common.settings import SettingsError
from services.registry.settings import RegistrySettings
from tests.backend import Backend
from tests.registry.bundles import bundle, digest_of
from tests.registry.running import RunningRegistry, running_registry

_ORIGIN = "https://app.example"
_VERSION = "/job-bundles/hello/versions/1.0.0"


async def test_a_resource_is_sent_once_and_again_when_it_has_changed(registry: RunningRegistry) -> None:
    await registry.publish(bundle())
    digest = (await registry.request("GET", _VERSION)).json["digest"]
    job = '{"bundle": "hello@latest"}'
    await registry.request("PUT", "/jobs/greet", data=job)
    resolve = "/job-bundles/hello/resolve?reference=1.0.0"
    for path in (_VERSION, "/job-bundles/hello", f"/artifacts/{digest}", "/jobs/greet", "/job-bundles", resolve):
        first = await registry.request("GET", path)
        assert first.headers["Cache-Control"] == "private, no-cache"
        tag = first.headers["ETag"]
        for known in (tag, f"W/{tag}", f'"x", {tag}', "*"):
            again = await registry.request("GET", path, headers={"If-None-Match": known})
            assert (again.status, again.body, again.headers["ETag"]) == (304, b"", tag), path
            assert "X-Request-Id" in again.headers
        for other in ('"x"', "garbage", ""):
            assert (await registry.request("GET", path, headers={"If-None-Match": other})).status == 200
        assert (await registry.request("HEAD", path)).headers["ETag"] == tag
    before = (await registry.request("GET", "/jobs/greet")).headers["ETag"]
    await registry.request("PUT", "/jobs/greet", data='{"bundle": "hello@1.0.0"}')
    changed = await registry.request("GET", "/jobs/greet", headers={"If-None-Match": before})
    assert (changed.status, changed.headers["ETag"] != before) == (200, True)


async def test_a_resolution_says_at_once_what_has_changed(registry: RunningRegistry) -> None:
    """Answers are kept, but never one that is true no more."""
    first, second = bundle(), bundle(files={"more": "x"})
    path = "/job-bundles/hello/resolve?reference=1.0.0"
    seen: dict[str, str] = {}

    async def told() -> dict[str, Any]:
        answers = [await registry.request("GET", path) for _ in range(2)]
        assert answers[0].body == answers[1].body
        assert seen.setdefault(answers[0].headers["ETag"], answers[0].body.decode()) == answers[0].body.decode()
        found: dict[str, Any] = answers[0].json
        return {"status": found["status"], "reason": found["statusReason"], "revision": found["revision"]} | {
            "digest": found["artifact"]["digest"]
        }

    async def change(**body: str) -> None:
        assert (await registry.request("PATCH", _VERSION, json=body)).status == 200

    await registry.publish(first)
    expected = {"status": "active", "reason": None, "revision": 1, "digest": digest_of(first)}
    assert await told() == expected
    for reason in ("deletes its input", "deletes its output"):
        await change(status="yanked", reason=reason)
        assert await told() == expected | {"status": "yanked", "reason": reason}
    await change(status="active", reason="it was another one")
    assert await told() == expected
    await registry.publish(second, force="true", reason="mended")
    assert await told() == expected | {"revision": 2, "digest": digest_of(second)}
    back = await registry.request("POST", f"{_VERSION}/rollback", json={"toRevision": 1, "reason": "worse"})
    assert back.status == 200
    assert await told() == expected | {"revision": 3}
    assert len(seen) == 5


async def test_a_tag_is_no_way_around_the_token(registry: RunningRegistry) -> None:
    await registry.publish(bundle())
    tag = (await registry.request("GET", _VERSION)).headers["ETag"]
    for token, status in ((None, 401), (await registry.token_for("runs", "runs:read"), 403)):
        refused = await registry.request("GET", _VERSION, token=token, headers={"If-None-Match": tag})
        assert (refused.status, "ETag" in refused.headers) == (status, False)


async def test_every_answer_has_the_request_id_that_was_given(registry: RunningRegistry) -> None:
    await registry.publish(bundle())
    given = {"X-Request-Id": "from-the-proxy.1"}
    for method, path, status in (
        ("GET", "/livez", 200),
        ("GET", _VERSION, 200),
        ("GET", f"{_VERSION}/download", 307),
        ("GET", f"{_VERSION}/download?stream=true", 200),
        ("GET", "/audit/export", 200),
        ("GET", "/nothing", 404),
        ("DELETE", "/jobs", 405),
        ("PUT", "/jobs/UPPER", 400),
    ):
        answer = await registry.request(method, path, headers=given)
        assert (answer.status, answer.headers["X-Request-Id"]) == (status, "from-the-proxy.1"), path
    refused = await registry.request("GET", "/jobs", headers={"X-Request-Id": "a b"})
    assert refused.headers["X-Request-Id"].startswith("req_")


async def test_a_parameter_that_is_unknown_or_given_twice_is_refused_on_every_route(registry: RunningRegistry) -> None:
    for path in ("/job-bundles", "/jobs", "/tokens", "/audit", "/livez", "/metrics", "/docs"):
        refused = await registry.request("GET", f"{path}?limt=1")
        assert refused.status == 400, refused
        assert refused.json["errors"][0]["field"] == "limt"
    twice = await registry.request("GET", "/jobs?limit=1&limit=2")
    assert (twice.status, twice.json["errors"]) == (400, [{"field": "limit", "message": "Given more than once"}])


async def test_a_method_that_a_path_does_not_take_is_answered_with_those_that_it_takes(
    registry: RunningRegistry,
) -> None:
    for method, path, allowed in (
        ("POST", "/jobs", "GET,HEAD"),
        ("OPTIONS", "/jobs/x", "GET,HEAD,PUT"),
        ("GET", "/tokens/introspect", "POST"),
        ("GET", "/artifacts/uses", "POST"),
    ):
        refused = await registry.request(method, path, token=None)
        assert (refused.status, refused.headers["Allow"]) == (405, allowed), path


async def test_json_that_says_it_is_something_else_is_refused(registry: RunningRegistry) -> None:
    body = b'{"bundle": "hello@latest"}'
    refused = await registry.request("PUT", "/jobs/greet", data=body, headers={"Content-Type": "text/csv"})
    assert (refused.status, refused.json["type"]) == (415, "urn:stowage:problem:unsupported-media-type")
    for accepted in ("application/json", "application/json; charset=utf-8", "Application/JSON"):
        answer = await registry.request("PUT", "/jobs/greet", data=body, headers={"Content-Type": accepted})
        assert answer.status in (200, 201), accepted


async def test_no_page_may_ask_unless_its_origin_is_set(registry: RunningRegistry) -> None:
    asked = {"Origin": _ORIGIN, "Access-Control-Request-Method": "GET"}
    assert (await registry.request("OPTIONS", "/jobs", token=None, headers=asked)).status == 405
    answer = await registry.request("GET", "/jobs", headers={"Origin": _ORIGIN})
    assert answer.status == 200
    assert [name for name in answer.headers if name.lower().startswith("access-control")] == []


async def test_a_page_of_an_origin_that_is_set_may_ask(backend: Backend) -> None:
    async with running_registry(backend, cors_origins=[_ORIGIN]) as registry:
        await registry.publish(bundle())
        asked = {"Origin": _ORIGIN, "Access-Control-Request-Method": "PUT"}
        preflight = await registry.request("OPTIONS", "/jobs/greet", token=None, headers=asked)
        assert (preflight.status, preflight.headers["Access-Control-Allow-Origin"]) == (204, _ORIGIN)
        assert preflight.headers["Access-Control-Allow-Methods"] == "GET, HEAD, PUT"
        assert "Authorization" in preflight.headers["Access-Control-Allow-Headers"]
        assert preflight.headers["Vary"] == "Origin"
        for path, token, status in (
            ("/jobs", "", 200),
            ("/jobs", None, 401),
            (f"{_VERSION}/download?stream=true", "", 200),
        ):
            answer = await registry.request("GET", path, token=token, headers={"Origin": _ORIGIN})
            assert (answer.status, answer.headers["Access-Control-Allow-Origin"]) == (status, _ORIGIN)
            assert {"ETag", "X-Request-Id", "Retry-After", "Location"} <= set(
                answer.headers["Access-Control-Expose-Headers"].split(", ")
            )
            assert "Access-Control-Allow-Credentials" not in answer.headers
        for other in ("https://evil.example", "https://app.example.evil", "null"):
            refused = await registry.request("OPTIONS", "/jobs", token=None, headers={**asked, "Origin": other})
            assert refused.status == 405
            answer = await registry.request("GET", "/jobs", headers={"Origin": other})
            assert ("Access-Control-Allow-Origin" in answer.headers, answer.headers["Vary"]) == (False, "Origin")
        assert (await registry.request("OPTIONS", "/nothing", headers=asked)).status == 404


@pytest.mark.parametrize("origin", ["*", "https://app.example/", "app.example", "null", "https://app.example/x"])
def test_an_origin_that_is_none_is_refused(monkeypatch: pytest.MonkeyPatch, backend: Backend, origin: str) -> None:
    for name, value in backend.environment("STOWAGE_REGISTRY_").items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("STOWAGE_REGISTRY_CORS_ORIGINS", f'["{origin}"]')
    with pytest.raises(SettingsError, match="write scheme and host"):
        RegistrySettings.from_environment()


async def test_times_of_queries_have_to_be_times(registry: RunningRegistry) -> None:
    for wrong in ("0.5", "1700000000", "2026-01-01", "2026-01-01T00:00:00"):
        assert (await registry.request("GET", f"/audit?since={wrong}")).status == 400, wrong
    assert (await registry.request("GET", "/audit?since=2026-01-01T00:00:00Z")).status == 200


async def test_head_of_what_is_streamed_is_followed_by_the_next_answer(registry: RunningRegistry) -> None:
    """Nothing of a body may come: who keeps the connection would take it for the next answer."""
    await registry.publish(bundle())
    reader, writer = await asyncio.open_connection("127.0.0.1", registry.port)
    try:
        for path in ("/audit/export", f"{_VERSION}/download?stream=true"):
            for method, requested in (("HEAD", path), ("GET", "/livez")):
                writer.write(f"{method} {requested} HTTP/1.1\r\nHost: x\r\n".encode())
                writer.write(f"Authorization: Bearer {registry.token}\r\n\r\n".encode())
                head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 10)
                assert head.startswith(b"HTTP/1.1 200 OK\r\n"), (path, head)
            length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
            assert b"ok" in await reader.readexactly(length)
    finally:
        writer.close()
        await writer.wait_closed()


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        (f"{_VERSION}/revisions?cursor={encode_cursor(2**31)}", None),
        ("/audit?until=9999-12-31T23:59:59-01:00", "invalid-request"),
        ("/audit?since=0001-01-01T00:00:00%2B01:00", "invalid-request"),
    ],
)
async def test_numbers_and_times_beyond_what_is_kept_are_no_fault_of_ours(
    registry: RunningRegistry, path: str, kind: str | None
) -> None:
    await registry.publish(bundle())
    answer = await registry.request("GET", path)
    assert answer.status == (200 if kind is None else 400)
    assert kind is None or answer.json["type"].endswith(f":{kind}")


async def test_body_with_endless_small_values_is_refused_before_it_is_read(registry: RunningRegistry) -> None:
    many = b'{"slug": "hello", "capabilityFlags": [' + b"0," * 400_000 + b"0]}"
    answer = await registry.request("POST", "/job-bundles", data=many, headers={"Content-Type": "application/json"})
    assert (answer.status, answer.json["maxValues"]) == (400, 100_000)
    some = b'{"slug": "hello", "capabilityFlags": [' + b"0," * 1000 + b"0]}"
    answer = await registry.request("POST", "/job-bundles", data=some, headers={"Content-Type": "application/json"})
    assert (answer.status, len(answer.json["errors"])) == (400, 50)


async def test_body_that_is_not_compressed_as_it_says_is_refused(registry: RunningRegistry) -> None:
    headers = {"Content-Type": "application/json", "Content-Encoding": "gzip"}
    answer = await registry.request("PUT", "/jobs/greet", data=b'{"bundle": "hello@latest"}', headers=headers)
    assert (answer.status, answer.json["type"]) == (400, "urn:stowage:problem:body-damaged")
