"""What differs between artifacts: members, totals, platforms, manifests, and the lines of texts."""

import asyncio
import hashlib
import json
import os
import tarfile
import threading
from typing import Any

import pytest

from libs.common.database import open_pool
from services.registry.diff_contents import Abandoned, read_members
from services.registry.store import artifacts
from tests.backend import Backend
from tests.registry.bundles import bundle, compress, manifest, pack, tar
from tests.registry.running import Answer, RunningRegistry, running_registry
from tests.unit.test_native import elf, macho

DIFF = "/job-bundles/hello/diff"


async def diff(registry: RunningRegistry, before: str, after: str, **query: str) -> Answer:
    return await registry.request("GET", DIFF, params={"from": before, "to": after, **query})


async def all_items(registry: RunningRegistry, before: str, after: str, **query: str) -> list[list[dict[str, Any]]]:
    """The items of every page; the rest of each page is the same."""
    pages = [(await diff(registry, before, after, **query)).json]
    while pages[-1]["next"]:
        pages.append((await diff(registry, before, after, cursor=pages[-1]["next"], **query)).json)
    heads = [{name: page[name] for name in ("from", "to", "summary", "native", "manifest")} for page in pages]
    assert all(head == heads[0] for head in heads)
    return [page["items"] for page in pages]


async def publish(registry: RunningRegistry, *bodies: bytes) -> list[dict[str, Any]]:
    """The version after each of these was published over the one before."""
    return [(await registry.publish(body, force="true", reason="next")).json for body in bodies]


def member(content: bytes, mode: str = "0644") -> dict[str, Any]:
    digest = f"sha256:{hashlib.sha256(content).hexdigest()}"
    return {"type": "file", "size": len(content), "mode": mode, "digest": digest, "linkTarget": None}


async def test_members_totals_platforms_and_manifest_are_compared(registry: RunningRegistry) -> None:
    await registry.publish(bundle(version="0.1.0"), version="0.1.0")
    await registry.request("PATCH", "/job-bundles/hello", json={"allowedPlatforms": ["any"], "reason": "a Mac's"})
    old_native, new_native = elf(), macho()
    old, new = await publish(
        registry,
        bundle(
            files={"a.txt": "gone", "lib/same.js": "same", "lib/x.js": "old", "n.node": old_native}, compression="zstd"
        ),
        bundle(files={"lib/same.js": "same", "lib/x.js": "newer", "m.node": new_native, "z": ""}, entry2="x"),
    )
    answer = await diff(registry, "1.0.0@r1", "1.0.0")
    assert answer.status == 200
    found = answer.json
    for side, version, revision in (("from", old, 1), ("to", new, 2)):
        expected = {name: version[name] for name in found[side] if name != "revision"}
        assert found[side] == {**expected, "revision": revision}
        assert {"digest", "contentDigest", "size", "unpackedSize", "fileCount", "platforms"} <= found[side].keys()
    changed_manifests = [item for item in found["items"] if item["path"] == "manifest.json"]
    grown = changed_manifests[0]["after"]["size"] - changed_manifests[0]["before"]["size"]
    assert found["summary"] == {
        "added": 2,
        "removed": 2,
        "changed": 2,
        "addedBytes": len(new_native),
        "removedBytes": 4 + len(old_native),
        "changedBytes": 2 + grown,
        "platformsAdded": new["platforms"],
        "platformsRemoved": old["platforms"],
        "addedPaths": ["m.node", "z"],
        "removedPaths": ["a.txt", "n.node"],
        "changedPaths": ["lib/x.js", "manifest.json"],
    }
    assert new["unpackedSize"] - old["unpackedSize"] == len(new_native) - 4 - len(old_native) + 2 + grown
    assert found["native"] == {
        "added": 1,
        "removed": 1,
        "addedFiles": [{"path": "m.node", "platform": new["platforms"][0]}],
        "removedFiles": [{"path": "n.node", "platform": old["platforms"][0]}],
    }
    assert found["manifest"] == [{"key": "entry2", "before": None, "after": "x"}]
    assert [(item["path"], item["change"]) for item in found["items"]] == [
        ("a.txt", "removed"),
        ("lib/x.js", "changed"),
        ("m.node", "added"),
        ("manifest.json", "changed"),
        ("n.node", "removed"),
        ("z", "added"),
    ]
    assert found["items"][0] == {
        "path": "a.txt",
        "change": "removed",
        "before": member(b"gone"),
        "after": None,
        "text": None,
        "omitted": None,
    }
    assert (found["items"][1]["before"], found["items"][1]["after"]) == (member(b"old"), member(b"newer"))
    assert found["next"] is None


def member_of(name: str, kind: bytes, target: str = "", mode: int = 0o644) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.mode = kind, target, mode
    return info


async def test_what_does_not_count_for_the_content_does_not_differ(registry: RunningRegistry) -> None:
    """Directories with something in them, which of two names is the link, times, and what compressed it."""
    files = {"manifest.json": bundle_manifest(), "main.py": "def handler(context): ...\n"}
    one = tar({**files, "lib/a": "same"}, [member_of("lib/b", tarfile.LNKTYPE, "lib/a")])
    two = tar(
        {**files, "lib/b": "same", "lib.txt": "x"},
        [
            member_of("lib/a", tarfile.LNKTYPE, "lib/b"),
            member_of("empty", tarfile.DIRTYPE),
            member_of("lib", tarfile.DIRTYPE),
        ],
    )
    await publish(registry, compress(one), compress(two, compression="zstd"))
    found = (await diff(registry, "1.0.0@r1", "1.0.0@r2")).json
    assert {item["path"]: item["change"] for item in found["items"]} == {"empty": "added", "lib.txt": "added"}
    conflict = (await registry.publish(compress(one))).json["difference"]
    assert (conflict["added"], conflict["removedPaths"], conflict["changed"]) == (0, ["empty", "lib.txt"], 0)


def bundle_manifest() -> str:
    return json.dumps(manifest())


async def test_modes_links_and_kinds_of_members_differ(registry: RunningRegistry) -> None:
    files = {"manifest.json": bundle_manifest(), "main.py": "def handler(context): ...\n"}
    one = tar(
        files,
        [
            member_of("run", tarfile.REGTYPE),
            member_of("to", tarfile.SYMTYPE, "main.py"),
            member_of("d", tarfile.DIRTYPE),
        ],
    )
    two = tar(
        {**files, "d": "a file"},
        [member_of("run", tarfile.REGTYPE, mode=0o755), member_of("to", tarfile.SYMTYPE, "manifest.json")],
    )
    await publish(registry, compress(one), compress(two))
    by_path = {item["path"]: item for item in (await diff(registry, "1.0.0@r1", "1.0.0@r2", text="true")).json["items"]}
    assert set(by_path) == {"d", "run", "to"}
    assert (by_path["run"]["before"], by_path["run"]["after"]) == (member(b""), member(b"", "0755"))
    assert [by_path["to"][side]["linkTarget"] for side in ("before", "after")] == ["main.py", "manifest.json"]
    assert [by_path["d"][side]["type"] for side in ("before", "after")] == ["directory", "file"]
    assert {(item["text"], item["omitted"]) for item in by_path.values()} == {(None, None)}


async def test_texts_are_compared_by_lines(backend: Backend) -> None:
    async with running_registry(backend, diff_file_bytes=1000) as registry:
        await publish(
            registry,
            bundle(files={"a": "1\n2\n3\n", "bin": b"\0\1", "gone": "x", "large": "x" * 1001, "latin": b"\xe9"}),
            pack(
                {
                    "manifest.json": bundle_manifest(),
                    "main.py": "def handler(context):\n    return 'ü'\n",
                    "a": "1\ntwo\n3\n",
                    "bin": b"\0\2",
                    "large": "x",
                    "latin": b"\xe8",
                    "new": "n\n",
                },
                compression="zstd",
            ),
        )
        without = (await diff(registry, "1.0.0@r1", "1.0.0@r2")).json["items"]
        assert {(item["text"], item["omitted"]) for item in without} == {(None, None)}
        items = (await diff(registry, "1.0.0@r1", "1.0.0@r2", text="true")).json["items"]
    assert {item["path"]: item["text"] or item["omitted"] for item in items} == {
        "a": "--- a/a\n+++ b/a\n@@ -1,3 +1,3 @@\n 1\n-2\n+two\n 3\n",
        "bin": "binary",
        "gone": "--- a/gone\n+++ /dev/null\n@@ -1 +0,0 @@\n-x\n\\ No newline at end of file\n",
        "large": "too-large",
        "latin": "binary",
        "main.py": "--- a/main.py\n+++ b/main.py\n@@ -1,2 +1,2 @@\n def handler(context):\n"
        "-    return context.parameters\n+    return 'ü'\n",
        "new": "--- /dev/null\n+++ b/new\n@@ -0,0 +1 @@\n+n\n",
    }


async def test_text_of_a_hard_link_is_that_of_its_target(registry: RunningRegistry) -> None:
    files = {"manifest.json": bundle_manifest(), "main.py": "def handler(context): ...\n"}
    bodies = [
        compress(tar({**files, "a": f"{number}\n"}, [member_of("b", tarfile.LNKTYPE, "a")])) for number in range(2)
    ]
    await publish(registry, *bodies)
    items = (await diff(registry, "1.0.0@r1", "1.0.0@r2", text="true")).json["items"]
    assert [(item["path"], item["text"]) for item in items] == [
        (path, f"--- a/{path}\n+++ b/{path}\n@@ -1 +1 @@\n-0\n+1\n") for path in ("a", "b")
    ]


async def test_pages_list_each_member_once_and_hold_no_more_text_than_allowed(backend: Backend) -> None:
    async with running_registry(backend, diff_answer_bytes=2500) as registry:
        names = [f"lib/{number:02}.js" for number in range(23)]
        await publish(
            registry,
            bundle(files=dict.fromkeys(names, "a" * 299 + "\n")),
            bundle(files=dict.fromkeys(names, "b" * 299 + "\n")),
        )
        for limit in (1, 7, 23, 500):
            pages = await all_items(registry, "1.0.0@r1", "1.0.0@r2", limit=str(limit))
            assert [item["path"] for page in pages for item in page] == names
            assert [len(page) for page in pages[:-1]] == [limit] * (len(pages) - 1)
        pages = await all_items(registry, "1.0.0@r1", "1.0.0@r2", text="true", limit="10")
        assert [len(page) for page in pages] == [4, 4, 4, 4, 4, 3]
        assert [item["path"] for page in pages for item in page] == names
        assert {item["text"].count("\n") for page in pages for item in page} == {5}


async def test_references_name_what_the_bundle_has_or_had(registry: RunningRegistry) -> None:
    one, two = await publish(registry, bundle(files={"n": "1"}), bundle(files={"n": "2"}))
    three = (await registry.publish(bundle(version="1.1.0"), version="1.1.0")).json
    meanings = {
        "1.0.0": ("1.0.0", 2, two["digest"]),
        "1.0.0@r1": ("1.0.0", 1, one["digest"]),
        "1.0.0@r2": ("1.0.0", 2, two["digest"]),
        one["digest"]: ("1.0.0", 1, one["digest"]),
        "latest": ("1.1.0", 1, three["digest"]),
        "1.1.0": ("1.1.0", 1, three["digest"]),
    }
    for reference, meaning in meanings.items():
        side = (await registry.client.diff("hello", reference, "latest")).before
        assert (side.version, side.revision, side.digest) == meaning
    other = (await registry.publish(bundle("other"), "other")).json
    for reference, kind in (
        ("2.0.0", "version-not-found"),
        ("1.0.0@r3", "revision-not-found"),
        ("2.0.0@r1", "version-not-found"),
        (other["digest"], "digest-not-found"),
        (f"sha256:{'0' * 64}", "digest-not-found"),
    ):
        for sides in ((reference, "latest"), ("latest", reference)):
            missing = await diff(registry, *sides)
            assert (missing.status, missing.json["type"]) == (404, f"urn:stowage:problem:{kind}")
    for reference in ("1.0.0@r0", "1.0.0@", "1.0.0@2", "sha256:x", "", "1.0.0@r9999999999"):
        assert (await diff(registry, reference, "latest")).status == 400
    for query in ("from=1.0.0", "to=1.0.0", "from=1.0.0&to=1.0.0&mode=x", "from=1.0.0&to=1.0.0&limit=0"):
        assert (await registry.request("GET", f"{DIFF}?{query}")).status == 400
    assert (await registry.request("GET", "/job-bundles/nothing/diff?from=latest&to=latest")).status == 404


async def test_cursor_is_of_no_use_for_other_artifacts(registry: RunningRegistry) -> None:
    await publish(registry, bundle(files={"n": "1"}), bundle(files={"m": "2"}))
    cursor = (await diff(registry, "1.0.0@r1", "latest", limit="1")).json["next"]
    assert len((await diff(registry, "1.0.0@r1", "1.0.0@r2", cursor=cursor)).json["items"]) == 1
    await publish(registry, bundle(files={"o": "3"}))
    foreign = (await registry.request("GET", "/job-bundles/hello/versions/1.0.0/files?limit=1")).json["next"]
    for moved in (cursor, foreign, "nonsense"):
        refused = await diff(registry, "1.0.0@r1", "latest", cursor=moved)
        assert (refused.status, refused.json["type"]) == (400, "urn:stowage:problem:invalid-cursor")


@pytest.mark.parametrize("damage", ["missing", "cut", "flipped"])
async def test_texts_of_a_damaged_artifact_are_not_shown(registry: RunningRegistry, damage: str) -> None:
    bodies = [bundle(files={"n": f"{number}\n", "data": os.urandom(100_000)}, level=0) for number in range(2)]
    old, _ = await publish(registry, *bodies)
    key = next(key for key in registry.keys("artifacts/") if old["digest"].removeprefix("sha256:") in key)
    registry.objects.delete(key)
    middle = len(bodies[0]) // 2
    flipped = bodies[0][:middle] + bytes([bodies[0][middle] ^ 1]) + bodies[0][middle + 1 :]
    if damage != "missing":
        left = bodies[0][:-9] if damage == "cut" else flipped
        registry.objects.put(key, left, content_type="application/gzip")
    refused = await diff(registry, "1.0.0@r1", "1.0.0@r2", text="true")
    assert (refused.status, refused.json["type"]) == (503, "urn:stowage:problem:artifact-damaged")
    assert refused.json["digest"] == old["digest"]
    assert len((await diff(registry, "1.0.0@r1", "1.0.0@r2")).json["items"]) == 2


async def test_members_of_a_collected_artifact_are_still_compared(registry: RunningRegistry) -> None:
    old, _ = await publish(registry, bundle(files={"n": "1\n"}), bundle(files={"n": "2\n"}))
    await registry.backend.fetch(
        "UPDATE registry.artifacts SET collected_at = now(), collection_policy = 'a test' WHERE digest = $1",
        old["digest"],
    )
    assert len((await diff(registry, old["digest"], "latest")).json["items"]) == 1
    gone = await diff(registry, old["digest"], "latest", text="true")
    assert (gone.status, gone.json["type"]) == (410, "urn:stowage:problem:artifact-collected")


async def test_texts_of_a_quarantined_version_are_not_shown(registry: RunningRegistry) -> None:
    old, _ = await publish(registry, bundle(files={"n": "1\n"}), bundle(files={"n": "2\n"}))
    patch = {"status": "quarantined", "reason": "it holds a key"}
    assert (await registry.request("PATCH", "/job-bundles/hello/versions/1.0.0", json=patch)).status == 200
    await registry.publish(bundle(version="1.1.0", files={"n": "3\n"}), version="1.1.0")
    for reference in ("1.0.0", "1.0.0@r1", old["digest"]):
        for sides in ((reference, "1.1.0"), ("1.1.0", reference)):
            refused = await diff(registry, *sides, text="true")
            assert (refused.status, refused.json["type"]) == (403, "urn:stowage:problem:version-quarantined")
        assert (await diff(registry, reference, "1.1.0")).status == 200


async def test_caller_who_leaves_stops_the_comparison(registry: RunningRegistry) -> None:
    old, _ = await publish(
        registry, *(bundle(files={"n": f"{number}\n", "data": os.urandom(16_000_000)}) for number in range(2))
    )
    early = 0
    for _ in range(3):  # more than are compared at a time
        reader, writer = await asyncio.open_connection("127.0.0.1", registry.port)
        writer.write(
            f"GET {DIFF}?from=1.0.0@r1&to=1.0.0&text=true HTTP/1.1\r\nHost: x\r\n"
            f"Authorization: Bearer {registry.token}\r\n\r\n".encode()
        )
        await writer.drain()
        await asyncio.sleep(0.03)
        writer.close()
        await writer.wait_closed()
        early += await reader.read() == b""
    assert early, "each comparison was done before its caller left"
    await registry.settled()
    assert (await diff(registry, "1.0.0@r1", "1.0.0", text="true")).json["items"][1]["text"] is not None
    url = registry.backend.database_url
    async with open_pool(url, size=1, application_name="test") as pool, pool.acquire() as connection:
        artifact = await artifacts.get(connection, old["digest"])
    assert artifact is not None
    abandoned = threading.Event()
    abandoned.set()
    with pytest.raises(Abandoned):
        await asyncio.to_thread(read_members, registry.objects, artifact, {"n": 2}, abandoned)


async def test_texts_need_the_bucket_and_members_do_not(backend: Backend) -> None:
    async with running_registry(backend) as registry:
        await publish(registry, bundle(files={"n": "1\n"}), bundle(files={"n": "2\n"}))
    async with running_registry(backend, s3_endpoint="http://127.0.0.1:9") as registry:
        assert len((await diff(registry, "1.0.0@r1", "1.0.0@r2")).json["items"]) == 1
        away = await diff(registry, "1.0.0@r1", "1.0.0@r2", text="true")
        assert (away.status, away.json["type"]) == (503, "urn:stowage:problem:object-store-unavailable")
