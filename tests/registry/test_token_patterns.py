"""Tokens that are for some slugs only: what they may, what they must not learn, and when they were used."""

import asyncio
import re
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from libs.common.api import operation_of
from libs.common.auth import Grant, Principal, Scope, known_grants, parse_scopes
from libs.common.errors import InvalidRequest
from libs.common.introspection import CachedIntrospection
from libs.common.rate import UnknownTokens, refusals_counter
from services.registry.routes import ROUTES
from tests.backend import Backend
from tests.registry.bundles import bundle
from tests.registry.running import RunningRegistry, running_registry

_NARROW = ("bundles:read:mine-*", "bundles:publish:mine-*", "bundles:force:mine-*", "runs:write:mine-*")
_JOB = {"bundle": "mine-a@latest"}
_WORKFLOW = {"steps": [{"name": "one", "job": "mine-a"}]}

BY_SLUG = {
    ("GET", "/job-bundles"),
    ("POST", "/job-bundles"),
    ("GET", "/artifacts/{digest:(?!uses$)[^/]+}"),
    ("POST", "/artifacts/uses"),
    ("GET", "/jobs"),
    ("GET", "/workflows"),
}
"""Routes without a slug in their path that narrowed tokens may ask. Each has a test of what it answers them."""


@pytest.mark.parametrize(
    ("name", "slug", "covers"),
    [
        ("bundles:read", "any", True),
        ("bundles:read:hello", "hello", True),
        ("bundles:read:hello", "hello-2", False),
        ("bundles:publish:observatory-*", "observatory-loader", True),
        ("bundles:publish:observatory-*", "observatory-", True),
        ("bundles:publish:observatory-*", "observatory", False),
        ("bundles:publish:observatory-*", "an-observatory-loader", False),
        ("bundles:force:*-loader", "observatory-loader", True),
        ("runs:write:a*b*c", "a-b-b-c", True),
        ("runs:write:a*b*c", "a-c-b", False),
    ],
)
def test_pattern_covers_the_slugs_that_it_says(name: str, slug: str, covers: bool) -> None:
    (grant,) = parse_scopes([name])
    assert grant.covers(slug) is covers
    assert str(grant) == name
    assert Principal("x", frozenset({grant}), "tok").may(grant.scope, slug) is covers
    assert Principal("x", frozenset({grant}), "tok").may(grant.scope) is (grant.pattern is None)


@pytest.mark.parametrize(
    "name",
    [
        *(
            "bundles:read:",
            "bundles:read:*",
            "bundles:read:**",
            "bundles:read:A*",
            "bundles:read:a?",
            "bundles:read:[a]",
        ),
        *("bundles:read:a b", "bundles:read:a%", "bundles:read:a_b", "bundles:read:a:b", "bundles:read:" + "a" * 129),
        *("admin:hello", "audit:read:hello", "builds:write:hello", "runs:read:hello", "bundles:*", "bundles:write:a"),
        *("bundles:read:a\n", "bundles:read:é"),
    ],
)
def test_what_is_no_pattern_is_refused_and_gives_no_rights(name: str) -> None:
    with pytest.raises(InvalidRequest):
        parse_scopes([name])
    assert known_grants([name, "runs:read"]) == {Grant(Scope.RUNS_READ)}


def test_pattern_with_many_stars_costs_no_time() -> None:
    (grant,) = parse_scopes(["bundles:read:" + "*a" * 60 + "b"])
    assert not grant.covers("a" * 128)


def _filled(path: str, slug: str) -> str:
    values = {"slug": slug, "version": "1.0.0", "digest": "sha256:" + "0" * 64}
    return re.sub(r"\{(\w+)[^}]*\}", lambda match: values.get(match[1], "1"), path)


async def test_narrowed_token_learns_nothing_of_other_bundles_on_any_route(registry: RunningRegistry) -> None:
    await registry.publish(bundle("theirs"), "theirs")
    token = await registry.token_for("ci", *_NARROW)
    asked = set()
    for route in ROUTES:
        declared = operation_of(route.handler)
        assert declared is not None
        if declared.scope is None or declared.by_slug or (route.method == "POST" and "introspect" in route.path):
            continue
        answers = []
        for slug in ("theirs", "nothing"):
            answer = await registry.request(route.method, _filled(route.path, slug), token=token)
            assert answer.status == 403, (route, answer.body)
            facts = {key: value for key, value in answer.json.items() if key != "requestId"}
            assert facts["requiredScope"] == declared.scope.value
            answers.append(str(facts).replace(slug, "-"))
            if "{slug}" in route.path and "bundles" in declared.scope.value:
                assert (facts["slug"], facts["patterns"]) == (slug, ["mine-*"])
                assert slug in facts["detail"]
        assert answers[0] == answers[1]
        asked.add((route.method, route.path))
    assert len(asked) > 10
    by_slug = {(route.method, route.path) for route in ROUTES if getattr(operation_of(route.handler), "by_slug", False)}
    assert by_slug == BY_SLUG


async def test_narrowed_token_does_with_its_own_slugs_what_it_may(registry: RunningRegistry) -> None:
    token = await registry.token_for("ci", *_NARROW)
    assert (await registry.publish(bundle("mine-a"), "mine-a", token=token)).status == 201
    replaced = await registry.publish(
        bundle("mine-a", files={"x": "1"}), "mine-a", token=token, force="true", reason="better"
    )
    assert replaced.status == 200
    for method, path, body in (
        ("PATCH", "/job-bundles/mine-a/versions/1.0.0", {"status": "active"}),
        ("PUT", "/jobs/mine-a", _JOB),
        ("PUT", "/workflows/mine-w", _WORKFLOW),
        ("GET", "/job-bundles/mine-a/resolve?reference=latest", None),
        ("GET", "/job-bundles/mine-a/versions/1.0.0/download", None),
        ("GET", f"/artifacts/{replaced.json['digest']}", None),
        ("GET", f"/artifacts/{replaced.json['previousDigest']}", None),
    ):
        answer = await registry.request(method, path, token=token, json=body)
        assert answer.status < 400, (path, answer.body)
    assert (await registry.publish(bundle("other"), "other", token=token)).status == 403


async def test_force_is_for_its_own_slugs(registry: RunningRegistry) -> None:
    for slug in ("mine-a", "other"):
        await registry.publish(bundle(slug), slug)
    token = await registry.token_for("ci", "bundles:publish", "bundles:force:mine-*")
    query = {"force": "true", "reason": "better"}
    assert (await registry.publish(bundle("mine-a", files={"x": "1"}), "mine-a", token=token, **query)).status == 200
    refused = await registry.publish(bundle("other", files={"x": "1"}), "other", token=token, **query)
    assert (refused.status, refused.json["requiredScope"], refused.json["slug"]) == (403, "bundles:force", "other")


async def test_lists_show_what_may_be_read(registry: RunningRegistry) -> None:
    for slug in ("mine-a", "mine-b", "other", "mine"):
        await registry.publish(bundle(slug), slug)
        await registry.request("PUT", f"/jobs/{slug}", json=_JOB)
        await registry.request("PUT", f"/workflows/{slug}", json=_WORKFLOW)
    token = await registry.token_for("ci", "bundles:read:mine-*", "bundles:read:o*r")
    for path in ("/job-bundles", "/jobs", "/workflows"):
        found, query = [], {"limit": "2"}
        while True:
            page = (await registry.request("GET", path, token=token, params=query)).json
            found += [item["slug"] for item in page["items"]]
            if page["next"] is None:
                break
            query["cursor"] = page["next"]
        assert found == ["mine-a", "mine-b", "other"]
        assert len((await registry.request("GET", path)).json["items"]) == 4
        blind = await registry.token_for("blind", "bundles:publish", "runs:read")
        assert (await registry.request("GET", path, token=blind)).status == 403


async def test_artifact_is_not_there_for_whom_no_bundle_has_it(registry: RunningRegistry) -> None:
    digest = (await registry.publish(bundle("other"), "other")).json["digest"]
    token = await registry.token_for("ci", "bundles:read:mine-*")
    hidden = await registry.request("GET", f"/artifacts/{digest}", token=token)
    unknown = await registry.request("GET", f"/artifacts/sha256:{'0' * 64}", token=token)
    assert (hidden.status, unknown.status) == (404, 404)
    assert hidden.json["type"] == unknown.json["type"]
    assert hidden.json["detail"].replace(digest, "") == unknown.json["detail"].replace(f"sha256:{'0' * 64}", "")


async def test_older_body_is_checked_for_its_slug(registry: RunningRegistry) -> None:
    token = await registry.token_for("ci", "bundles:publish:mine-*")
    body: dict[str, Any] = {"version": "1.0.0", "manifest": {"version": "1.0.0"}, "artifact": {"data": ""}}
    refused = await registry.request("POST", "/job-bundles", token=token, json={**body, "slug": "other"})
    assert (refused.status, refused.json["slug"]) == (403, "other")
    passed = await registry.request("POST", "/job-bundles", token=token, json={**body, "slug": "mine-a"})
    assert passed.status == 400  # an empty tarball


async def test_other_services_learn_the_patterns(registry: RunningRegistry) -> None:
    created = await registry.request("POST", "/tokens", json={"subject": "ci", "scopes": ["runs:write:mine-*"]})
    assert created.json["scopes"] == ["runs:write:mine-*"]
    unknown = UnknownTokens(50, "UNKNOWN_TOKENS", refusals_counter(CollectorRegistry()))
    principal = await CachedIntrospection(registry.client, unknown)(created.json["token"])
    assert principal == Principal("ci", parse_scopes(["runs:write:mine-*"]), created.json["id"])
    narrow = await registry.token_for("runner", "bundles:read:mine-*")
    assert (await registry.request("POST", "/tokens/introspect", token=narrow, json={"token": "x"})).status == 403


async def test_use_is_noted_once_for_many_requests(backend: Backend) -> None:
    async with running_registry(backend, token_use_interval_seconds=0.3) as registry:
        token = await registry.token_for("ci", "bundles:read")
        await registry.token_for("idle", "bundles:read")
        await backend.fetch("CREATE TABLE writes (id text)")
        await backend.fetch(
            "CREATE FUNCTION count_write() RETURNS trigger LANGUAGE plpgsql AS "
            "'BEGIN INSERT INTO public.writes VALUES (new.id); RETURN new; END'"
        )
        await backend.fetch(
            "CREATE TRIGGER count_writes AFTER UPDATE ON registry.tokens FOR EACH ROW EXECUTE FUNCTION count_write()"
        )
        before = datetime.now(UTC)
        await asyncio.gather(*(registry.request("GET", "/job-bundles", token=token) for _ in range(30)))
        async with asyncio.timeout(20):
            while not (used := await _used(registry, "ci")):  # noqa: ASYNC110
                await asyncio.sleep(0.05)
        assert abs(used - before) < timedelta(seconds=30)
        (writes,) = await backend.fetch(
            "SELECT count(*) AS n FROM writes w JOIN registry.tokens USING (id) WHERE subject = 'ci'"
        )
        assert 1 <= writes["n"] <= 2
        assert await _used(registry, "idle") is None


async def _used(registry: RunningRegistry, subject: str) -> datetime | None:
    (item,) = (await registry.request("GET", "/tokens", params={"subject": subject})).json["items"]
    return datetime.fromisoformat(item["lastUsedAt"]) if item["lastUsedAt"] else None


async def test_tokens_are_filtered(registry: RunningRegistry) -> None:
    for subject in ("a", "b", "c"):
        await registry.request("POST", "/tokens", json={"subject": subject, "scopes": ["bundles:read"]})
    (b,) = (await registry.request("GET", "/tokens", params={"subject": "b"})).json["items"]
    await registry.request("DELETE", f"/tokens/{b['id']}")

    async def found(**query: str) -> list[str]:
        answer = await registry.request("GET", "/tokens", params=query)
        assert answer.status == 200, answer.body
        return [item["subject"] for item in answer.json["items"]]

    assert await found(active="true") == ["admin", "a", "c"]
    assert await found(active="false") == ["b"]
    assert await found(subject="b", active="true") == []
    assert await found(unusedSince="2090-01-01T00:00:00Z") == ["admin", "a", "b", "c"]
    assert await found(unusedSince="2020-01-01T00:00:00Z") == []
    assert (await registry.request("GET", "/tokens", params={"owner": "b"})).status == 400
