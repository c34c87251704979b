"""Builds that go wrong, and what their commands can see."""

import asyncio
import json
import os
from pathlib import Path

import psutil
import pytest

from libs.common.models import Build, BuildStage, BuildState, ImportState
from tests.builder.conftest import Shop, import_now, require_success
from tests.builder.waiting import eventually

_SLEEP = "Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, 600000);"


def _forking(pids: Path) -> str:
    """A build that hangs, with a child that does, and one that left its session."""
    child = f"require('fs').writeFileSync({str(pids)!r} + '/' + process.pid, ''); {_SLEEP}"
    return (
        "const { spawn } = require('child_process');"
        f"spawn(process.execPath, ['-e', {child!r}], {{ stdio: 'inherit' }});"
        f"spawn(process.execPath, ['-e', {child!r}], {{ detached: true, stdio: 'ignore' }}).unref();"
        f"console.log('hanging'); {child}"
    )


def _alive(pids: Path) -> list[int]:
    return [int(path.name) for path in pids.iterdir() if psutil.pid_exists(int(path.name))]


async def _only_build(shop: Shop, **settings: object) -> Build:
    async with shop.builder(**settings) as builder:
        done = await import_now(builder, shop.example)
    (build,) = done.builds
    return build


async def test_commands_see_nothing_of_the_service(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    secrets = {
        "STOWAGE_BUILDER_SERVICE_TOKEN": "secret-1",
        "STOWAGE_BUILDER_DATABASE_URL": "secret-2",
        "AWS_SECRET_ACCESS_KEY": "secret-3",
        "NODE_AUTH_TOKEN": "secret-4",
        "PGPASSWORD": "secret-5",
        "NODE_OPTIONS": "--no-warnings=secret-6",
    }
    for name, value in secrets.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("HTTP_PROXY_OF_NOBODY", "secret-7")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    shop.example.node("nosy", "console.log('ENV ' + JSON.stringify(process.env));")
    build = await _only_build(shop, command_environment={"EXTRA": "given"})
    text = await shop.log(build.id)
    assert "secret-" not in text
    assert shop.service_token not in text
    (line,) = [line for line in text.splitlines() if "] ENV {" in line]
    seen = json.loads(line[line.index("{") :])
    assert [name for name in seen if name.startswith("STOWAGE") or name in secrets] == []
    assert seen["EXTRA"] == "given"
    assert seen["no_proxy"] == "127.0.0.1"
    assert os.environ["HOME"] != seen["HOME"]
    for name in ("HOME", "TMPDIR", "npm_config_cache"):
        assert seen[name].startswith(str(shop.work_dir / "stowage-build-bld_")), name


async def test_failing_build_keeps_its_last_lines_and_the_whole_log(shop: Shop) -> None:
    shop.example.node(
        "broken",
        "for (let n = 0; n < 2000; n++) console.log('line ' + n); console.error('the reason'); process.exitCode = 7;",
    )
    build = await _only_build(shop)
    assert (build.state, build.stage) == (BuildState.FAILED, BuildStage.BUILD)
    assert build.error
    assert build.error.type == "command-failed"
    assert "npm run build --if-present” failed with exit code 7" in build.error.message
    assert len(build.error.log_tail) == 30
    assert "line 1999" in build.error.log_tail
    assert "the reason" in build.error.log_tail
    text = await shop.log(build.id)
    assert [f"[build] line {number}\n" in text for number in range(2000)] == [True] * 2000
    assert await shop.backend.fetch("SELECT * FROM builder.journal") == []


async def test_hung_build_times_out_and_leaves_no_process(shop: Shop, tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    pids.mkdir()
    shop.example.node("hung", _forking(pids))
    build = await _only_build(shop, command_seconds=8)
    assert build.state is BuildState.FAILED
    assert build.error
    assert build.error.type == "command-timed-out"
    assert "8 seconds" in build.error.message
    assert "hanging" in build.error.log_tail
    assert len(list(pids.iterdir())) == 3
    assert _alive(pids) == []


async def test_flood_of_stderr_ends_and_its_tail_is_kept(shop: Shop) -> None:
    shop.example.node(
        "flood",
        "const fs = require('fs'); const line = 'e'.repeat(99) + '\\n';"
        "for (let n = 0; n < 300; n++) fs.writeSync(2, line.repeat(1000)); console.log('end'); process.exitCode = 1;",
    )
    async with asyncio.timeout(60):
        build = await _only_build(shop, log_max_bytes=1024 * 1024)
    assert build.error
    assert "end" in build.error.log_tail
    assert "more lines were dropped" in await shop.log(build.id)


async def test_package_without_a_lock_file_fails_with_what_to_do(shop: Shop) -> None:
    source = shop.example.node("unlocked", "")
    (source / "package-lock.json").unlink()
    build = await _only_build(shop)
    assert build.error
    assert build.error.type == "lock-file-missing"
    assert "npm install --package-lock-only" in build.error.message


async def test_lock_file_that_does_not_match_fails_in_npms_own_words(shop: Shop) -> None:
    source = shop.example.node("stale", "")
    package = json.loads((source / "package.json").read_text())
    (source / "package.json").write_text(json.dumps({**package, "dependencies": {"ms": "2.1.3"}}))
    build = await _only_build(shop)
    assert (build.state, build.stage) == (BuildState.FAILED, BuildStage.INSTALL)
    assert build.error
    assert "Missing: ms@2.1.3 from lock file" in "\n".join(build.error.log_tail)


async def test_package_without_a_build_script_is_published_as_it_is(shop: Shop) -> None:
    source = shop.example.node("plain", "")
    package = json.loads((source / "package.json").read_text())
    del package["scripts"]
    (source / "package.json").write_text(json.dumps(package))
    assert (await _only_build(shop)).state is BuildState.SUCCEEDED


@pytest.mark.parametrize(
    ("manifest", "message"),
    [
        ("{", "is not JSON"),
        ("[]", "must be a JSON object"),
        ('{"name": "other", "version": "1.0.0", "runtime": "node24", "entry": "index.js"}', "name “other”"),
        ('{"name": "odd", "version": "one", "runtime": "node24", "entry": "index.js"}', "not a semantic version"),
        ('{"name": "odd", "version": "1.0.0", "runtime": "node24", "entry": "dist/index.js"}', "dist/index.js"),
    ],
)
async def test_wrong_manifest_fails_its_build_with_what_is_wrong(shop: Shop, manifest: str, message: str) -> None:
    (shop.example.node("odd", "") / "manifest.json").write_text(manifest)
    shop.example.python("notes")
    async with shop.builder() as builder:
        done = await import_now(builder, shop.example)
    assert done.state is ImportState.PARTIALLY_FAILED
    (error,) = [build.error for build in done.builds if build.slug == "odd"]
    assert error
    assert message in error.message


async def test_link_out_of_the_source_fails_its_build(shop: Shop) -> None:
    source = shop.example.python("notes")
    (source / "passwords").symlink_to("/etc/passwd")
    build = await _only_build(shop)
    assert (build.state, build.stage) == (BuildState.FAILED, BuildStage.COPY)
    assert build.error
    assert "passwords is a link that leads out" in build.error.message


async def test_what_can_not_be_packed_publishes_nothing(shop: Shop) -> None:
    shop.example.node(
        "leaky",
        "const fs = require('fs'); fs.mkdirSync('zz'); fs.symlinkSync('/etc/passwd', 'zz/link');"
        "fs.writeFileSync('aa', Buffer.alloc(8e6, Math.random().toString()));",
    )
    build = await _only_build(shop)
    assert (build.state, build.stage) == (BuildState.FAILED, BuildStage.PUBLISH)
    assert build.error
    assert build.error.type == "packing-failed"
    assert "zz/link" in build.error.message
    assert await shop.backend.fetch("SELECT * FROM registry.versions") == []
    await eventually(lambda: shop.backend.keys("uploads/") == [] and shop.backend.keys("artifacts/") == [])


async def test_refusal_of_the_registry_is_the_failure_of_the_build(shop: Shop) -> None:
    shop.example.python("notes")
    shop.service_token = await shop.registry.token_for("weak", "bundles:read", "bundles:publish")
    async with shop.builder() as builder:
        require_success(await import_now(builder, shop.example))
        (shop.example.path / "bundles/notes/main.py").write_text("def handler(context): return 2\n")
        done = await import_now(builder, shop.example)
    (build,) = done.builds
    assert build.error
    assert build.error.type == "forbidden"
    assert "bundles:force" in build.error.message


async def test_two_builds_may_share_a_cache_of_npm(shop: Shop, tmp_path: Path) -> None:
    shop.example.copy("greeter")
    async with shop.builder(npm_cache=tmp_path / "npm") as builder:
        require_success(await import_now(builder, shop.example))
        assert (tmp_path / "npm" / "_cacache").is_dir()
        require_success(await import_now(builder, shop.example))


async def test_stopping_the_builder_ends_its_builds_and_leaves_their_import_to_others(
    shop: Shop, tmp_path: Path
) -> None:
    pids = tmp_path / "pids"
    pids.mkdir()
    slugs = ["hung-a", "hung-b", "hung-c"]
    for slug in slugs:
        shop.example.node(slug, _forking(pids))
    async with shop.builder() as builder:
        await builder.client.start_import(shop.example.name)
        await eventually(lambda: len(list(pids.iterdir())) == 6)
    assert _alive(pids) == []
    assert shop.left_behind() == []
    assert [tuple(row) for row in await shop.backend.fetch("SELECT state, holder FROM builder.imports")] == [
        ("queued", None)
    ]
    builds = await shop.backend.fetch("SELECT slug, state, stage, started_at FROM builder.builds ORDER BY slug")
    assert [tuple(row) for row in builds] == [(slug, "queued", None, None) for slug in slugs]
    assert await shop.backend.fetch("SELECT * FROM registry.versions") == []
