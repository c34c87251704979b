"""The platform gate: what can run nowhere where it is allowed to is refused at publish, and leaves nothing behind."""

import base64
from pathlib import Path

import pytest

from libs.common.errors import InvalidRequest
from libs.common.native import host_platform
from libs.common.settings import SettingsError
from services.registry.gate import check_patterns, foreign_members
from services.registry.settings import RegistrySettings
from tests.backend import Backend
from tests.registry.bundles import MACHO, bundle, manifest
from tests.registry.running import NOTHING, RunningRegistry, running_registry

OURS = Path("/bin/true").read_bytes()
BINDING = "node_modules/@duckdb/node-bindings/duckdb.node"
MAC = bundle(files={BINDING: MACHO, "node_modules/@duckdb/node-bindings/libduckdb.dylib": MACHO})
PREBUILT = bundle(files={"node_modules/fs/prebuilds/mac.node": MACHO, "node_modules/fs/prebuilds/linux.node": OURS})


async def test_a_bundle_from_a_mac_is_refused_and_leaves_nothing(registry: RunningRegistry) -> None:
    refused = await registry.publish(MAC)
    assert (refused.status, refused.json["type"]) == (422, "urn:stowage:problem:platform-not-allowed")
    problem = refused.json
    assert problem["member"] == BINDING
    assert problem["members"][0] == {"path": BINDING, "platform": "darwin/arm64"}
    assert (len(problem["members"]), problem["memberCount"]) == (2, 2)
    assert problem["allowedPlatforms"] == ["linux"]
    detail = problem["detail"]
    assert f"hello@1.0.0 can run on no platform that is allowed, which are linux: member {BINDING} is for" in detail
    assert "POST /examples/import does that, or run npm ci there" in detail
    body = {
        "slug": "hello",
        "version": "1.0.0",
        "manifest": manifest(),
        "force": True,
        "artifact": {"data": base64.b64encode(MAC).decode()},
    }
    assert await registry.residue() == NOTHING
    assert await registry.actions() == []
    refused = await registry.request("POST", "/job-bundles", json=body)
    assert (refused.status, refused.json["type"]) == (422, "urn:stowage:problem:platform-not-allowed")
    assert await registry.residue() == NOTHING
    (event,) = await registry.audit()
    assert (event["action"], event["detail"]["refusal"]) == ("version.force_refused", "platform-not-allowed")


async def test_what_runs_here_or_anywhere_passes_and_is_not_replaced_by_what_does_not(
    registry: RunningRegistry,
) -> None:
    assert (await registry.publish(bundle())).status == 201
    assert (await registry.publish(PREBUILT, force="true", reason="with binaries")).status == 200
    refused = await registry.publish(MAC, force="true", reason="from my laptop")
    assert refused.status == 422
    assert (await registry.actions())[-1] == "version.force_refused"
    version = await registry.request("GET", "/job-bundles/hello/versions/1.0.0")
    assert (version.json["revision"], version.json["platforms"]) == (2, ["darwin/arm64", str(host_platform())])
    assert len(registry.keys()) == 2


async def test_a_bundle_may_say_itself_where_it_runs(registry: RunningRegistry) -> None:
    await registry.publish(bundle())
    for allowed, status in ((["darwin"], 201), (["any"], 201), (["win32/x64", "linux"], 422), (None, 422)):
        answer = await registry.request("PATCH", "/job-bundles/hello", json={"allowedPlatforms": allowed})
        assert answer.status == 200
        version = f"2.0.{len(await registry.audit())}"
        data = bundle(version=version, files={BINDING: MACHO})
        published = await registry.publish(data, version=version)
        assert published.status == status, (allowed, published.body)
    again = await registry.publish(bundle(version="2.0.2", files={BINDING: MACHO}), version="2.0.2")
    assert again.status == 200, "what is published already stays, whatever is allowed since"


async def test_an_artifact_that_is_stored_is_judged_like_one_that_is_sent(backend: Backend) -> None:
    async with running_registry(backend, allowed_platforms="any") as lenient:
        digest = (await lenient.publish(MAC)).json["digest"]
    async with running_registry(backend) as registry:
        await registry.publish(bundle(), force="true", reason="rebuilt")
        query = {"digest": digest, "force": "true", "reason": "back"}
        refused = await registry.request("PUT", "/job-bundles/hello/versions/1.0.0", params=query)
        assert (refused.status, refused.json["type"]) == (422, "urn:stowage:problem:platform-not-allowed")
        assert (await registry.actions())[-1] == "version.force_refused"


async def test_the_registrys_policy_is_a_setting(backend: Backend) -> None:
    async with running_registry(backend, allowed_platforms="win32/x64, darwin/arm64") as registry:
        assert (await registry.publish(MAC)).status == 201
        refused = await registry.publish(bundle("ours", files={"a.node": OURS}), "ours")
        assert refused.status == 422
        assert refused.json["allowedPlatforms"] == ["win32/x64", "darwin/arm64"]


@pytest.mark.parametrize("patterns", ["", "linux,,darwin", "linux/", "linux/x64/uclibc", "linux/x64/glibc/2", "Linux"])
def test_a_setting_that_makes_no_sense_keeps_the_registry_from_starting(
    patterns: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STOWAGE_REGISTRY_ALLOWED_PLATFORMS", patterns)
    with pytest.raises(SettingsError, match=r"ALLOWED_PLATFORMS: .*is no pattern for platforms"):
        RegistrySettings.from_environment()


@pytest.mark.parametrize(
    ("pattern", "meant"), [("macos", "darwin"), ("linux/aarch64", "arm64"), ("linux/amd64", "x64")]
)
def test_a_name_that_is_used_elsewhere_is_told(pattern: str, meant: str) -> None:
    with pytest.raises(InvalidRequest, match=f"is {meant} here"):
        check_patterns([pattern])


A, B = "node_modules/a/a.node", "node_modules/b/b.node"


@pytest.mark.parametrize(
    ("native", "allowed", "foreign"),
    [
        ([], ["linux"], []),
        ([(A, "linux/x64/glibc")], ["linux"], []),
        ([(A, "linux/x64/glibc")], ["linux/x64"], []),
        ([(A, "linux/x64/glibc")], ["linux/x64/glibc"], []),
        ([(A, "linux/x64/glibc")], ["linux/x64/musl"], [A]),
        ([(A, "linux/x64/glibc")], ["linux/arm64", "darwin"], [A]),
        ([(A, "linux/x64/glibc")], ["win32", "linux/x64"], []),
        ([(A, "linux/x64")], ["linux/x64/musl"], []),
        ([(A, "linux/x64"), (B, "linux/x64/glibc")], ["linux"], []),
        ([(A, "linux/x64/musl"), (B, "linux/x64/glibc")], ["linux"], [A, B]),
        ([(A, "linux/x64/glibc"), (B, "linux/arm64/glibc")], ["linux"], [A, B]),
        ([(A, "linux/x64/glibc"), (A, "linux/arm64/glibc"), (B, "linux/arm64/glibc")], ["linux"], []),
        ([(A, "linux/x64/glibc"), (B, "darwin/arm64")], ["linux"], [B]),
        ([(A, "linux/x64/glibc"), ("node_modules/a/mac.node", "darwin/arm64")], ["linux"], []),
        ([(A, "darwin/arm64")], ["any"], []),
        ([(A, "nonsense")], ["linux"], [A]),
    ],
)
def test_one_allowed_platform_on_which_all_packages_run_is_enough(
    native: list[tuple[str, str]], allowed: list[str], foreign: list[str]
) -> None:
    assert [path for path, _ in foreign_members(native, allowed)] == foreign
