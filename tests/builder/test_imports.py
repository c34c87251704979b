"""Imports: rebuilt, published with force, written down, repaired by running them again."""

import asyncio
import io
import json
import subprocess
import tarfile
from pathlib import Path

import pytest
import zstandard

from libs.common.client import ServiceError
from libs.common.models import (
    BuildStage,
    BuildState,
    FileEntry,
    Import,
    ImportRequest,
    ImportState,
    Page,
    Revision,
    Version,
)
from services.builder.toolchain import find_toolchain
from tests.builder.conftest import Shop, finished, import_now, require_success

_BROKEN = "console.log('about to break'); console.error('the reason'); process.exit(7);"
_FINE = "require('fs').writeFileSync('made.txt', 'made');"


async def _version(shop: Shop, slug: str, version: str = "1.0.0") -> Version:
    return await shop.registry.client.get(f"/job-bundles/{slug}/versions/{version}", Version)


async def _revisions(shop: Shop, slug: str, version: str = "1.0.0") -> list[Revision]:
    page = await shop.registry.client.get(f"/job-bundles/{slug}/versions/{version}/revisions", Page[Revision])
    return sorted(page.items, key=lambda revision: revision.revision)


async def _paths(shop: Shop, slug: str) -> list[str]:
    page = await shop.registry.client.get(f"/job-bundles/{slug}/versions/1.0.0/files", Page[FileEntry], limit=500)
    return [entry.path for entry in page.items]


async def _audit(shop: Shop, import_id: str) -> list[tuple[str, str, dict[str, object]]]:
    rows = await shop.backend.fetch(
        "SELECT action, actor, detail FROM audit.events WHERE subject = $1 ORDER BY id", f"import/{import_id}"
    )
    return [(row["action"], row["actor"], json.loads(row["detail"])) for row in rows]


def _unpack(shop: Shop, digest: str, target: Path) -> None:
    value = digest.removeprefix("sha256:")
    store = shop.backend.objects()
    with store.read(f"artifacts/sha256/{value[:2]}/{value}.tar.zst") as body:
        packed = b"".join(body)
    store.close()
    with (
        zstandard.ZstdDecompressor().stream_reader(io.BytesIO(packed)) as stream,
        tarfile.open(fileobj=stream, mode="r|") as tar,
    ):
        tar.extractall(target, filter="data")


def _node(script: str, directory: Path) -> bytes:
    return subprocess.run([find_toolchain().node, "-e", script], cwd=directory, capture_output=True, check=True).stdout


async def test_typescript_source_is_installed_built_pruned_and_published(shop: Shop, tmp_path: Path) -> None:
    source = shop.example.copy("greeter")
    # What an earlier build on some other machine left in the source.
    for stale in ("node_modules/ms/index.js", "dist/stale.js", "build.tsbuildinfo", ".cache/a"):
        (source / stale).parent.mkdir(parents=True, exist_ok=True)
        (source / stale).write_text("stale")
    shop.example.job("greet", "greeter@latest", parameters={"name": "job"})
    shop.example.workflow("greetings", "greet")
    async with shop.builder() as builder:
        done = require_success(await import_now(builder, shop.example))
    (build,) = done.builds
    assert (build.version, build.revision, build.unchanged, build.previous_digest) == ("1.0.0", 1, False, None)
    assert build.stage is BuildStage.DONE

    version = await _version(shop, "greeter")
    assert (version.digest, version.published_by) == (build.digest, "builder")
    paths = await _paths(shop, "greeter")
    assert {"dist/index.js", "node_modules/ms/index.js", "manifest.json", "package-lock.json"} <= set(paths)
    assert not [path for path in paths if "typescript" in path or "stale" in path or path.startswith(".cache")]

    assert build.digest
    await asyncio.to_thread(_unpack, shop, build.digest, tmp_path / "bundle")
    script = "import('./dist/index.js').then(m => console.log(JSON.stringify(m.handler({parameters: {name: 'Ada'}}))))"
    assert json.loads(await asyncio.to_thread(_node, script, tmp_path / "bundle")) == {
        "greeting": "Hello, Ada, for 1 minute"
    }
    assert "resolved" not in (tmp_path / "bundle/node_modules/.package-lock.json").read_text()

    assert (await shop.registry.client.job("greet")).definition.parameters == {"name": "job"}
    assert [step.job for step in (await shop.registry.client.workflow("greetings")).definition.steps] == ["greet"]
    assert shop.left_behind() == []
    # The example itself is as it was.
    assert (source / "dist/stale.js").read_text() == "stale"


async def test_same_source_again_gives_the_same_digest_and_changes_nothing(shop: Shop) -> None:
    shop.example.copy("greeter")
    shop.example.python("notes")
    async with shop.builder() as builder:
        first = require_success(await import_now(builder, shop.example))
        second = require_success(await import_now(builder, shop.example))
    for before, after in zip(first.builds, second.builds, strict=True):
        assert before.digest == after.digest
        assert (after.revision, after.unchanged, after.previous_digest) == (1, True, None)
        assert len(await _revisions(shop, after.slug)) == 1
    for import_ in (first, second):
        requested, ended = await _audit(shop, import_.id)
        assert requested == (
            "import.requested",
            "alice",
            {"example": "example", "bundles": ["greeter", "notes"]},
        )
        assert ended[:2] == ("import.finished", "alice")
        assert ended[2]["state"] == "succeeded"


async def test_changed_source_replaces_what_was_published_and_says_so(shop: Shop) -> None:
    source = shop.example.node("thing", _FINE)
    async with shop.builder() as builder:
        first = require_success(await import_now(builder, shop.example))
        (source / "index.js").write_text("exports.handler = () => 2;\n")
        second = require_success(await import_now(builder, shop.example))
        text = "\n".join([line async for line in builder.client.lines(f"/builds/{second.builds[0].id}/log")])
    before, after = first.builds[0], second.builds[0]
    assert (after.revision, after.unchanged, after.previous_digest) == (2, False, before.digest)
    version = await _version(shop, "thing")
    assert (version.replaced_by, version.previous_digest) == ("builder", before.digest)
    assert version.reason == f"import {second.id} of example requested by alice"
    assert [revision.build_id for revision in await _revisions(shop, "thing")] == [before.id, after.id]
    assert after.digest
    assert before.digest
    for fact in ("bundle published", '"revision": 2', after.digest, before.digest, '"platforms"'):
        assert fact in text


async def test_a_failed_bundle_does_not_stop_the_others_and_running_again_repairs_it(shop: Shop) -> None:
    source = shop.example.node("broken", _BROKEN)
    shop.example.node("fine", _FINE)
    for slug in ("broken", "fine"):
        shop.example.job(slug, f"{slug}@latest")
        shop.example.workflow(f"only-{slug}", slug)
    async with shop.builder() as builder:
        first = await import_now(builder, shop.example)
        assert first.state is ImportState.PARTIALLY_FAILED
        assert first.error
        assert first.error.message.startswith("1 of 2 bundles failed: broken.")
        broken, fine = first.builds
        assert (broken.state, broken.stage, fine.state) == (BuildState.FAILED, BuildStage.BUILD, BuildState.SUCCEEDED)
        with pytest.raises(ServiceError) as missing:
            await shop.registry.client.job("broken")
        assert missing.value.status == 404
        assert (await shop.registry.client.workflow("only-fine")).slug == "only-fine"

        (source / "build.js").write_text(_FINE)
        second = require_success(await import_now(builder, shop.example))
    assert [(build.slug, build.unchanged) for build in second.builds] == [("broken", False), ("fine", True)]
    assert (await shop.registry.client.workflow("only-broken")).slug == "only-broken"
    assert [event[2].get("state") for event in await _audit(shop, first.id)] == [None, "partially_failed"]


async def test_import_whose_bundles_all_fail_has_failed(shop: Shop) -> None:
    shop.example.node("broken", _BROKEN)
    async with shop.builder() as builder:
        done = await import_now(builder, shop.example)
    assert done.state is ImportState.FAILED


async def test_one_bundle_can_be_imported_alone(shop: Shop) -> None:
    shop.example.node("one", _FINE)
    shop.example.node("two", _FINE)
    shop.example.job("two", "two@latest")
    async with shop.builder() as builder:
        done = require_success(await import_now(builder, shop.example, ["one"]))
        assert [build.slug for build in done.builds] == ["one"]
        with pytest.raises(ServiceError):
            await shop.registry.client.job("two")


async def test_source_for_python_is_copied_and_packed(shop: Shop) -> None:
    shop.example.python("notes")
    async with shop.builder() as builder:
        require_success(await import_now(builder, shop.example))
    assert await _paths(shop, "notes") == ["main.py", "manifest.json"]


async def test_jobs_are_updated_and_a_wrong_one_makes_the_import_partially_failed(shop: Shop) -> None:
    shop.example.node("thing", _FINE)
    shop.example.job("thing", "thing@latest", parameters={"n": 1})
    async with shop.builder() as builder:
        require_success(await import_now(builder, shop.example))
        shop.example.job("thing", "thing@latest", parameters={"n": 2})
        require_success(await import_now(builder, shop.example))
        assert (await shop.registry.client.job("thing")).definition.parameters == {"n": 2}
        (shop.example.path / "jobs" / "odd.json").write_text('{"slug": "odd", "bundel": "thing@latest"}')
        third = await import_now(builder, shop.example)
    assert third.state is ImportState.PARTIALLY_FAILED
    assert third.error
    assert "jobs/odd.json" in third.error.message


async def test_bundles_of_an_import_are_built_side_by_side_up_to_the_limit(shop: Shop, tmp_path: Path) -> None:
    # Each waits for the other's file: only side by side can they end.
    meet = (
        f"const fs = require('fs'); fs.writeFileSync({str(tmp_path)!r} + '/' + process.env.npm_package_name, '');"
        f"while (fs.readdirSync({str(tmp_path)!r}).filter(n => n.startsWith('meet-')).length < 2) "
        "Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, 50);"
    )
    for slug in ("meet-a", "meet-b"):
        shop.example.node(slug, meet)
    async with shop.builder(concurrency=2, command_seconds=30) as builder:
        require_success(await import_now(builder, shop.example))

    alone = (
        f"const fs = require('fs'); fs.mkdirSync({str(tmp_path / 'alone')!r});"
        "Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, 300);"
        f"fs.rmdirSync({str(tmp_path / 'alone')!r});"
    )
    for slug in ("meet-a", "meet-b"):
        shop.example.node(slug, alone)
    async with shop.builder(concurrency=1) as builder:
        require_success(await import_now(builder, shop.example))


async def test_two_imports_of_the_same_at_once_make_one_revision(shop: Shop) -> None:
    shop.example.node("thing", _FINE)
    async with shop.builder(concurrency=4) as builder:
        started = [await builder.client.start_import(shop.example.name) for _ in range(4)]
        done = [require_success(await finished(builder, import_)) for import_ in started]
    revisions = await _revisions(shop, "thing")
    assert len(revisions) == 1
    changed = [import_.builds[0] for import_ in done if not import_.builds[0].unchanged]
    assert [build.id for build in changed] == [revisions[0].build_id]


async def test_import_whose_client_left_in_the_middle_of_asking_is_either_unknown_or_carried_out(shop: Shop) -> None:
    shop.example.python("notes")
    async with shop.builder(concurrency=8) as builder:
        await builder.client.get("/imports", Page[Import])  # so that the token is known
        for number in range(30):
            asking = asyncio.create_task(builder.client.start_import(shop.example.name))
            await asyncio.sleep(number / 1000)
            asking.cancel()
            await asyncio.gather(asking, return_exceptions=True)
        page = await builder.client.get("/imports", Page[Import], limit=100)
        for started in page.items:
            require_success(await finished(builder, started, seconds=20))
    assert len(page.items) > 3


@pytest.mark.parametrize(
    ("example", "bundles", "status"),
    [
        ("../example", None, 400),
        ("/etc", None, 400),
        ("example/bundles", None, 400),
        ("", None, 400),
        ("missing", None, 404),
        ("linked", None, 404),
        ("example", ["../thing"], 400),
        ("example", ["missing"], 422),
        ("example", ["thing", "linked"], 422),
        ("empty", None, 422),
        ("example", [], 400),
    ],
)
async def test_names_that_are_not_there_or_lead_elsewhere_are_refused(
    shop: Shop, example: str, bundles: list[str] | None, status: int
) -> None:
    source = shop.example.node("thing", _FINE)
    (shop.example.directory / "linked").symlink_to(shop.example.path)
    (shop.example.path / "bundles" / "linked").symlink_to(source)
    (shop.example.directory / "empty").mkdir()
    async with shop.builder() as builder:
        body = ImportRequest.model_construct(example=example, bundles=bundles).model_dump()
        with pytest.raises(ServiceError) as refused:
            async with builder.client.request("POST", "/examples/import", json=body):
                pass
        assert refused.value.status == status
        if status == 404:
            assert refused.value.details["known"] == ["empty", "example"]
            assert "example" in refused.value.message
        if refused.value.kind == "unknown-bundle":
            assert refused.value.details["known"] == ["thing"]
    assert await shop.backend.fetch("SELECT id FROM builder.imports") == []


async def test_answer_to_a_request_says_where_to_look(shop: Shop) -> None:
    shop.example.python("notes")
    async with shop.builder() as builder:
        body = {"example": "example"}
        async with builder.client.request("POST", "/examples/import", json=body) as answer:
            assert answer.status == 202
            accepted = await answer.json()
            assert answer.headers["Location"] == f"/imports/{accepted['id']}"
        assert accepted["state"] in ("queued", "running")
        assert [(build["slug"], build["state"]) for build in accepted["builds"]] == [("notes", "queued")]
        await finished(builder, await builder.client.import_(accepted["id"]))


async def test_imports_are_listed_newest_first_in_pages(shop: Shop) -> None:
    shop.example.python("notes")
    async with shop.builder() as builder:
        started = [(await import_now(builder, shop.example)).id for _ in range(5)]
        seen, cursor = [], ""
        while True:
            options = {"cursor": cursor} if cursor else {}
            async with builder.client.request("GET", "/imports", params={"limit": "2", **options}) as answer:
                page = await answer.json()
            seen += [item["id"] for item in page["items"]]
            assert all(item["builds"][0]["slug"] == "notes" for item in page["items"])
            if page["next"] is None:
                break
            cursor = page["next"]
        assert seen == started[::-1]
        async with builder.client.request("GET", "/imports", params={"example": "other"}) as answer:
            assert await answer.json() == {"items": [], "next": None}
        for query in ({"cursor": "bad"}, {"limit": "0"}, {"limt": "1"}):
            with pytest.raises(ServiceError) as refused:
                async with builder.client.request("GET", "/imports", params=query):
                    pass
            assert refused.value.status == 400


async def test_everything_wants_a_token_with_the_right_scope(shop: Shop) -> None:
    reader = await shop.registry.token_for("reader", "bundles:read")
    async with shop.builder() as builder:
        for method, path in (
            ("POST", "/examples/import"),
            ("GET", "/imports"),
            ("GET", "/imports/imp_1"),
            ("GET", "/imports/imp_1/events"),
            ("GET", "/builds/bld_1"),
            ("GET", "/builds/bld_1/log"),
        ):
            for token, status in ((reader, 403), ("stw_unknown", 401)):
                headers = {"Authorization": f"Bearer {token}"}
                with pytest.raises(ServiceError) as refused:
                    async with builder.client.request(method, path, headers=headers):
                        pass
                assert (path, refused.value.status) == (path, status)
        for path in ("/imports/imp_1", "/imports/imp_1/events", "/builds/bld_1", "/builds/bld_1/log"):
            with pytest.raises(ServiceError) as missing:
                async with builder.client.request("GET", path):
                    pass
            assert missing.value.status == 404


async def test_import_that_is_asked_for_twice_with_one_key_is_made_once(shop: Shop) -> None:
    shop.example.node("one", _FINE)
    async with shop.builder() as builder:
        answers = []
        for _ in range(2):
            async with builder.client.request(
                "POST",
                "/examples/import",
                json={"example": shop.example.name},
                headers={"Idempotency-Key": "nightly"},
            ) as answer:
                answers.append((answer.status, answer.headers["Location"], await answer.read()))
        assert answers[0] == answers[1]
        (listed,) = (await builder.client.get("/imports", Page[Import])).items
        assert f"/imports/{listed.id}" == answers[0][1]
        require_success(await finished(builder, listed))
