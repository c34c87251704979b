"""Deprecated, yanked, quarantined, immutable: who may say so, what it stops, and that it can be taken back."""

import asyncio
from typing import Any

import pytest

from libs.common.models import VersionStatus
from tests.registry.bundles import bundle
from tests.registry.running import Answer, RunningRegistry

BUNDLE = "/job-bundles/hello"
VERSION = f"{BUNDLE}/versions/1.0.0"


async def patch(registry: RunningRegistry, body: dict[str, Any], *, path: str = VERSION, token: str = "") -> Answer:
    return await registry.request("PATCH", path, json=body, token=token)


async def last_event(registry: RunningRegistry) -> dict[str, Any]:
    return (await registry.audit())[-1]


async def test_a_yanked_version_is_not_latest_but_can_be_read_and_downloaded(registry: RunningRegistry) -> None:
    first = (await registry.publish(bundle())).json
    await registry.publish(bundle(version="1.1.0"), version="1.1.0")
    publisher = await registry.token_for("pat", "bundles:read", "bundles:publish")
    yanked = f"{BUNDLE}/versions/1.1.0"
    answer = await patch(registry, {"status": "yanked", "reason": "deletes its input"}, path=yanked, token=publisher)
    assert answer.status == 200, answer.body
    shown = answer.json
    assert (shown["status"], shown["statusReason"], shown["statusBy"]) == ("yanked", "deletes its input", "pat")
    assert shown["statusAt"]
    assert shown["deprecationReason"] is None
    event = await last_event(registry)
    assert (event["actor"], event["action"], event["reason"]) == ("pat", "version.yanked", "deletes its input")
    assert event["subject"] == "hello@1.1.0"
    assert event["digest"] == shown["digest"]

    assert (await registry.request("GET", BUNDLE)).json["latest"] == "1.0.0"
    assert (await registry.client.resolve("hello", "latest")).artifact.digest == first["digest"]
    for reference in ("1.1.0", shown["digest"]):
        resolved = await registry.client.resolve("hello", reference)
        assert (resolved.status, resolved.status_reason) == (VersionStatus.YANKED, "deletes its input")
        assert resolved.status_by == "pat"
        assert resolved.status_at is not None
    assert (await registry.request("GET", f"{yanked}/files")).status == 200
    assert (await registry.request("GET", f"{yanked}/download")).status == 307
    assert (await registry.request("GET", f"{yanked}/download?stream=true")).status == 200

    answer = await patch(registry, {"status": "active", "reason": "it was another one"}, path=yanked, token=publisher)
    assert (answer.json["status"], answer.json["statusReason"]) == ("active", None)
    assert (answer.json["statusBy"], answer.json["statusAt"]) == (None, None)
    event = await last_event(registry)
    assert (event["action"], event["reason"]) == ("version.unyanked", "it was another one")
    assert (await registry.request("GET", BUNDLE)).json["latest"] == "1.1.0"


async def test_a_quarantined_version_can_be_read_but_not_downloaded_until_it_is_released(
    registry: RunningRegistry,
) -> None:
    version = (await registry.publish(bundle())).json
    etag = {"If-None-Match": f'"{version["digest"]}"'}
    answer = await patch(registry, {"status": "quarantined", "reason": "steals tokens"})
    assert answer.json["status"] == "quarantined"
    for method, query, headers in (("GET", "", {}), ("GET", "?stream=true", {}), ("HEAD", "", {}), ("GET", "", etag)):
        refused = await registry.request(method, f"{VERSION}/download{query}", headers=headers)
        assert refused.status == 403, (method, query)
        if method == "GET":
            assert refused.json["type"] == "urn:stowage:problem:version-quarantined"
            assert "hello@1.0.0 was quarantined by “admin” at " in refused.json["detail"]
            assert "“steals tokens”" in refused.json["detail"]
            assert "until an administrator releases it" in refused.json["detail"]
    assert (await registry.request("GET", VERSION)).json["status"] == "quarantined"
    assert (await registry.request("GET", f"{VERSION}/files")).status == 200
    assert (await registry.client.resolve("hello", version["digest"])).status is VersionStatus.QUARANTINED
    latest = await registry.request("GET", f"{BUNDLE}/versions/latest")
    assert (latest.status, latest.json["type"]) == (404, "urn:stowage:problem:version-not-found")

    for status, action in (("yanked", "version.released"), ("active", "version.unyanked")):
        released = await patch(registry, {"status": status, "reason": "a false alarm"})
        assert released.json["status"] == status
        event = await last_event(registry)
        assert (event["action"], event["detail"]["after"], event["reason"]) == (action, status, "a false alarm")
    assert (await registry.request("GET", f"{VERSION}/download")).status == 307


async def test_every_revision_of_a_quarantined_version_is_quarantined_and_a_forced_one_too(
    registry: RunningRegistry,
) -> None:
    first = (await registry.publish(bundle())).json
    second = (await registry.publish(bundle(files={"a": "2"}), force="true", reason="mend")).json
    await patch(registry, {"status": "quarantined", "reason": "steals tokens"})
    forcer = await registry.token_for("fay", "bundles:read", "bundles:publish", "bundles:force")
    third = bundle(files={"a": "3"})
    refused = await registry.publish(third, token=forcer, force="true", reason="mend")
    assert (refused.status, refused.json["type"]) == (409, "urn:stowage:problem:version-quarantined")
    assert (await last_event(registry))["detail"]["refusal"] == "version-quarantined"
    forced = await registry.publish(third, force="true", reason="mend")
    assert (forced.status, forced.json["revision"], forced.json["status"]) == (200, 3, "quarantined")
    for digest in (first["digest"], second["digest"], forced.json["digest"]):
        assert (await registry.client.resolve("hello", digest)).status is VersionStatus.QUARANTINED
    assert (await registry.request("GET", f"{VERSION}/download")).status == 403
    back = {"toRevision": 1, "reason": "back"}
    refused = await registry.request("POST", f"{VERSION}/rollback", json=back, token=forcer)
    assert (refused.status, refused.json["type"]) == (409, "urn:stowage:problem:version-quarantined")

    await patch(registry, {"status": "yanked", "reason": "a false alarm, but it is slow"})
    replaced = await registry.publish(bundle(files={"a": "4"}), token=forcer, force="true", reason="mend")
    assert (replaced.status, replaced.json["status"]) == (200, "yanked")


@pytest.mark.parametrize("status", ["deprecated", "yanked", "quarantined"])
async def test_every_status_but_active_needs_a_reason_and_the_same_again_changes_nothing(
    registry: RunningRegistry, status: str
) -> None:
    await registry.publish(bundle())
    for body in ({"status": status}, {"status": status, "reason": "  "}):
        refused = await patch(registry, body)
        assert (refused.status, refused.json["type"]) == (400, "urn:stowage:problem:reason-required")
    for body in ({}, {"reason": "why"}):
        refused = await patch(registry, body)
        assert (refused.status, refused.json["type"]) == (400, "urn:stowage:problem:nothing-to-change")
    answers = [await patch(registry, {"status": status, "reason": "slow"}) for _ in range(3)]
    assert {answer.body for answer in answers} == {answers[0].body}
    assert await registry.actions() == ["version.published", f"version.{status}"]
    await patch(registry, {"status": status, "reason": "slower"})
    assert (await registry.actions())[2:] == [f"version.{status}"]


async def test_quarantine_is_an_administrators_and_a_refusal_is_in_the_trail(registry: RunningRegistry) -> None:
    await registry.publish(bundle())
    publisher = await registry.token_for("pat", "bundles:read", "bundles:publish", "bundles:force")
    refused = await patch(registry, {"status": "quarantined", "reason": "x"}, token=publisher)
    assert (refused.status, refused.json["requiredScope"]) == (403, "admin")
    assert "the token of “pat” may not put hello@1.0.0 into quarantine" in refused.json["detail"]
    event = await last_event(registry)
    assert (event["actor"], event["action"], event["subject"]) == ("pat", "version.update_refused", "hello@1.0.0")
    assert (event["detail"]["requested"], event["reason"]) == ({"status": "quarantined"}, "x")
    assert (await registry.request("GET", VERSION)).json["status"] == "active"

    await patch(registry, {"status": "quarantined", "reason": "steals tokens"})
    for status in ("active", "deprecated", "yanked", "quarantined"):
        refused = await patch(registry, {"status": status, "reason": "let me"}, token=publisher)
        assert refused.status == 403, status
        assert (await last_event(registry))["action"] == "version.update_refused"
    assert (await registry.request("GET", VERSION)).json["statusReason"] == "steals tokens"
    same = await patch(registry, {"status": "quarantined", "reason": "steals tokens"}, token=publisher)
    assert same.status == 200, "what it is already changes nothing"


async def test_an_immutable_version_is_replaced_only_by_an_administrator(registry: RunningRegistry) -> None:
    version = (await registry.publish(bundle())).json
    forcer = await registry.token_for("fay", "bundles:read", "bundles:publish", "bundles:force")
    answer = await patch(registry, {"immutable": True, "reason": "released to customers"}, token=forcer)
    assert (answer.status, answer.json["immutable"], answer.json["status"]) == (200, True, "active")
    event = await last_event(registry)
    assert (event["action"], event["reason"]) == ("version.updated", "released to customers")
    assert event["detail"] == {"before": {"immutable": False}, "after": {"immutable": True}}

    refused = await registry.publish(bundle(files={"a": "2"}), token=forcer, force="true", reason="mend")
    assert (refused.status, refused.json["type"]) == (409, "urn:stowage:problem:version-immutable")
    assert refused.json["existingDigest"] == version["digest"]
    assert (await last_event(registry))["action"] == "version.force_refused"
    refused = await patch(registry, {"immutable": False}, token=forcer)
    assert (refused.status, refused.json["requiredScope"]) == (403, "admin")
    assert (await last_event(registry))["detail"]["requested"] == {"immutable": False}

    assert (await registry.publish(bundle(files={"a": "2"}), force="true", reason="mend")).json["immutable"] is True
    both = await patch(registry, {"immutable": False, "status": "yanked", "reason": "slow"})
    assert (both.json["immutable"], both.json["status"]) == (False, "yanked")
    assert (await registry.actions())[-2:] == ["version.yanked", "version.updated"]
    assert (await registry.publish(bundle(), token=forcer, force="true", reason="back")).status == 200


async def test_an_immutable_bundle_takes_new_versions_and_replaces_none(registry: RunningRegistry) -> None:
    await registry.publish(bundle())
    forcer = await registry.token_for("fay", "bundles:read", "bundles:publish", "bundles:force")
    answer = await patch(registry, {"immutable": True}, path=BUNDLE, token=forcer)
    assert (answer.status, answer.json["immutable"]) == (200, True)
    refused = await registry.publish(bundle(files={"a": "2"}), token=forcer, force="true", reason="mend")
    assert (refused.status, refused.json["type"]) == (409, "urn:stowage:problem:bundle-immutable")
    assert "the bundle hello is immutable: only an administrator may replace hello@1.0.0" in refused.json["detail"]
    assert (await last_event(registry))["detail"]["refusal"] == "bundle-immutable"
    assert (await registry.publish(bundle(version="1.0.1"), version="1.0.1", token=forcer)).status == 201
    assert (await registry.publish(bundle(files={"a": "2"}), force="true", reason="mend")).json["revision"] == 2
    refused = await patch(registry, {"immutable": False, "reason": "let me"}, path=BUNDLE, token=forcer)
    assert (refused.status, refused.json["requiredScope"]) == (403, "admin")
    event = await last_event(registry)
    assert (event["action"], event["subject"], event["reason"]) == ("bundle.update_refused", "hello", "let me")
    assert (await patch(registry, {"immutable": False}, path=BUNDLE)).json["immutable"] is False
    assert (await registry.publish(bundle(), token=forcer, force="true", reason="back")).status == 200


@pytest.mark.parametrize(
    ("path", "body"), [(BUNDLE, {"immutable": True}), (VERSION, {"status": "quarantined", "reason": "steals tokens"})]
)
async def test_nothing_is_replaced_after_it_was_said_that_nothing_is(
    registry: RunningRegistry, path: str, body: dict[str, Any]
) -> None:
    await registry.publish(bundle())
    forcer = await registry.token_for("fay", "bundles:read", "bundles:publish", "bundles:force")

    async def replace(number: int) -> int:
        data = bundle(files={"number": str(number)})
        return (await registry.publish(data, token=forcer, force="true", reason="mend")).status

    replacing = [asyncio.create_task(replace(number)) for number in range(12)]
    await asyncio.wait(replacing, return_when=asyncio.FIRST_COMPLETED)
    answer = await patch(registry, body, path=path)
    assert answer.status == 200
    at_that_time = (await registry.request("GET", VERSION)).json["revision"]
    statuses = [await task for task in replacing]
    assert (await registry.request("GET", VERSION)).json["revision"] == at_that_time
    assert statuses.count(200) == at_that_time - 1
    assert set(statuses) <= {200, 409}
    actions = await registry.actions()
    said = next(index for index, action in enumerate(actions) if action in ("bundle.updated", "version.quarantined"))
    assert set(actions[said + 1 :]) <= {"version.force_refused"}


async def test_what_is_set_of_a_bundle_is_in_the_trail_as_it_was_and_as_it_is(registry: RunningRegistry) -> None:
    await registry.publish(bundle(description="of the manifest"))
    body = {
        "displayName": " Hello ",
        "description": None,
        "allowedPlatforms": ["linux/x64", "linux/x64", "linux/arm64"],
    }
    answer = await patch(registry, body, path=BUNDLE)
    assert (answer.status, answer.json["displayName"], answer.json["description"]) == (200, "Hello", None)
    assert answer.json["allowedPlatforms"] == ["linux/x64", "linux/arm64"]
    event = await last_event(registry)
    assert (event["action"], event["subject"]) == ("bundle.updated", "hello")
    assert event["detail"] == {
        "before": {"displayName": None, "description": "of the manifest", "allowedPlatforms": None},
        "after": {"displayName": "Hello", "description": None, "allowedPlatforms": ["linux/x64", "linux/arm64"]},
    }
    assert (await patch(registry, body, path=BUNDLE)).json == answer.json
    publisher = await registry.token_for("pat", "bundles:read", "bundles:publish")
    assert (await patch(registry, {"displayName": "Hi"}, path=BUNDLE, token=publisher)).json["displayName"] == "Hi"
    assert await registry.actions() == ["version.published", "bundle.updated", "bundle.updated"]
    for platforms in (None, ["any"]):
        refused = await patch(registry, {"allowedPlatforms": platforms}, path=BUNDLE, token=publisher)
        assert (refused.status, refused.json["requiredScope"]) == (403, "admin")
    assert (await patch(registry, {"allowedPlatforms": None}, path=BUNDLE)).json["allowedPlatforms"] is None
    wrong: dict[str, dict[str, Any]] = {
        "nothing-to-change": {},
        "invalid-request": {"immutable": None},
        "invalid-platform": {"allowedPlatforms": ["linux/x64", "macos"]},
    }
    for kind, body in wrong.items():
        refused = await patch(registry, body, path=BUNDLE)
        assert (refused.status, refused.json["type"]) == (400, f"urn:stowage:problem:{kind}")
    assert (await patch(registry, {"immutable": True}, path="/job-bundles/nothing")).status == 404
