"""Tokens: made, used, revoked, expired, introspected, and made on the command line."""

import asyncio
import hashlib
import json
import os
import stat
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from tests.backend import Backend
from tests.registry.running import RunningRegistry, running_registry


async def create(registry: RunningRegistry, subject: str, *scopes: str, **more: str) -> dict[str, str]:
    answer = await registry.request("POST", "/tokens", json={"subject": subject, "scopes": scopes, **more})
    assert answer.status == 201
    created: dict[str, str] = answer.json
    return created


async def test_token_works_is_stored_hashed_and_is_never_shown_again(registry: RunningRegistry) -> None:
    created = await create(registry, "ci", "bundles:read")
    assert (await registry.request("GET", "/job-bundles", token=created["token"])).status == 200
    assert (await registry.request("GET", "/audit", token=created["token"])).status == 403
    listed = (await registry.request("GET", "/tokens")).json["items"]
    assert [(item["subject"], item["scopes"]) for item in listed] == [("admin", ["admin"]), ("ci", ["bundles:read"])]
    assert created["token"] not in str(listed)
    (row,) = await registry.backend.fetch("SELECT hash, t::text FROM registry.tokens t WHERE id = $1", created["id"])
    assert row["hash"] == hashlib.sha256(created["token"].encode()).digest()
    assert created["token"] not in row["t"]
    (event,) = await registry.backend.fetch("SELECT * FROM audit.events WHERE subject = 'token/ci'")
    assert (event["action"], event["actor"]) == ("token.created", "admin")
    assert created["token"] not in str(dict(event))


async def test_revoked_token_is_refused_and_stays_listed(registry: RunningRegistry) -> None:
    created = await create(registry, "ci", "bundles:read")
    assert (await registry.request("GET", "/job-bundles", token=created["token"])).status == 200
    for _ in range(2):
        answer = await registry.request("DELETE", f"/tokens/{created['id']}")
        assert answer.status == 200
        assert answer.json["revokedAt"]
    assert (await registry.request("GET", "/job-bundles", token=created["token"])).status == 401
    events = await registry.backend.fetch("SELECT FROM audit.events WHERE action = 'token.revoked'")
    assert len(events) == 1
    assert (await registry.request("DELETE", "/tokens/tok_nothing")).status == 404
    assert (await registry.request("DELETE", "/tokens/a%00b")).status in (400, 404)


async def test_use_of_a_token_that_works_no_more_is_in_the_audit_trail_once_a_minute(registry: RunningRegistry) -> None:
    revoked, expired = await create(registry, "ci", "bundles:read"), await create(registry, "old", "bundles:read")
    await registry.request("DELETE", f"/tokens/{revoked['id']}")
    await registry.backend.fetch("UPDATE registry.tokens SET expires_at = now() WHERE subject = 'old'")
    for _ in range(3):
        assert (await registry.request("GET", "/jobs", token=revoked["token"])).status == 401
    assert (await registry.request("GET", "/jobs", token="stw_unknown")).status == 401
    introspection = await registry.request(
        "POST", "/tokens/introspect", json={"token": expired["token"]}, headers={"X-Request-Id": "asked-by-runner"}
    )
    assert introspection.json["active"] is False

    async def refused() -> list[dict[str, Any]]:
        found = await registry.backend.fetch("SELECT * FROM audit.events WHERE action = 'token.refused' ORDER BY id")
        return [{**dict(row), "detail": json.loads(row["detail"])} for row in found]

    first, second = await refused()
    assert (first["subject"], first["actor"], first["client"]) == ("token/ci", "ci", "127.0.0.1")
    assert first["detail"] == {"id": revoked["id"], "why": "revoked"}
    assert second["detail"] == {"id": expired["id"], "why": "expired"}
    assert second["request_id"] == "asked-by-runner"
    await registry.backend.fetch("UPDATE registry.tokens SET refused_at = refused_at - interval '61 seconds'")
    await registry.request("GET", "/jobs", token=revoked["token"])
    assert len(await refused()) == 3


async def test_revocation_reaches_other_replicas_within_two_seconds(backend: Backend) -> None:
    async with running_registry(backend) as one, running_registry(backend) as other:
        created = await create(one, "ci", "bundles:read")
        assert (await other.request("GET", "/job-bundles", token=created["token"])).status == 200
        await one.request("DELETE", f"/tokens/{created['id']}")
        await asyncio.sleep(2)
        assert (await other.request("GET", "/job-bundles", token=created["token"])).status == 401


async def test_expired_token_is_refused(registry: RunningRegistry) -> None:
    soon = (datetime.now(UTC) + timedelta(seconds=1)).isoformat()
    created = await create(registry, "ci", "bundles:read", expiresAt=soon)
    assert (await registry.request("GET", "/job-bundles", token=created["token"])).status == 200
    await asyncio.sleep(1.2)
    assert (await registry.request("GET", "/job-bundles", token=created["token"])).status == 401


@pytest.mark.parametrize(
    "body",
    [
        {"subject": "x", "scopes": []},
        {"subject": "x", "scopes": ["bundles:read", "everything"]},
        {"subject": "x", "scopes": ["everything"]},
        {"subject": "../x", "scopes": ["bundles:read"]},
        {"subject": "x", "scopes": ["bundles:read"], "expiresAt": "2020-01-01T00:00:00Z"},
        {"subject": "x", "scopes": ["bundles:read"], "expiresAt": "2090-01-01T00:00:00"},
        {"subject": "x", "scopes": ["bundles:read"], "admin": True},
    ],
)
async def test_token_that_makes_no_sense_is_refused(registry: RunningRegistry, body: dict[str, object]) -> None:
    assert (await registry.request("POST", "/tokens", json=body)).status == 400
    assert len((await registry.request("GET", "/tokens")).json["items"]) == 1


async def test_introspection_tells_whom_a_token_speaks_for(registry: RunningRegistry) -> None:
    created = await create(registry, "ci", "runs:write", "bundles:read")
    told = await registry.client.introspect(created["token"])
    assert (told.active, told.subject, told.scopes) == (True, "ci", ["bundles:read", "runs:write"])
    await registry.request("DELETE", f"/tokens/{created['id']}")
    assert not (await registry.client.introspect(created["token"])).active
    assert not (await registry.client.introspect("")).active


async def test_audit_is_filtered_and_paged(registry: RunningRegistry) -> None:
    for number in range(5):
        await create(registry, f"ci-{number}", "bundles:read")

    async def found(**query: str) -> list[str]:
        items: list[str] = []
        while True:
            page = (await registry.request("GET", "/audit", params={"limit": "2", **query})).json
            items += [item["subject"] for item in page["items"]]
            if page["next"] is None:
                return items
            query["cursor"] = page["next"]

    assert await found(actor="admin") == [f"token/ci-{number}" for number in (4, 3, 2, 1, 0)]
    assert await found(subject="token/ci-3") == ["token/ci-3"]
    assert await found(action="token.revoked") == []
    assert await found(since="2090-01-01T00:00:00Z") == []
    assert len(await found(until="2090-01-01T00:00:00Z")) == 6
    for wrong in ({"since": "yesterday"}, {"who": "me"}, {"cursor": "x"}):
        assert (await registry.request("GET", "/audit", params=wrong)).status == 400


async def command(backend: Backend, *arguments: str) -> tuple[int, str, str]:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "services.registry", *arguments),
        env={**backend.environment("STOWAGE_REGISTRY_"), "PATH": os.environ["PATH"]},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, error = await process.communicate()
    return process.returncode or 0, out.decode(), error.decode()


async def test_command_registers_the_token_of_a_file_once(backend: Backend, tmp_path: Path) -> None:
    path = tmp_path / "token"
    arguments = ("create-token", "--subject", "builder", "--scope", "bundles:read", "--scope", "bundles:publish")
    for _ in range(2):
        code, out, _ = await command(backend, *arguments, "--token-file", str(path))
        assert code == 0
        assert path.read_text().strip() not in out
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    async with running_registry(backend) as registry:
        token = path.read_text().strip()
        assert (await registry.request("GET", "/job-bundles", token=token)).status == 200
        listed = (await registry.request("GET", "/tokens")).json["items"]
        assert sorted(item["subject"] for item in listed) == ["admin", "builder"]
        (builder,) = (item for item in listed if item["subject"] == "builder")
        await registry.request("DELETE", f"/tokens/{builder['id']}")
    code, _, error = await command(backend, *arguments, "--token-file", str(path))
    assert (code, "revoked" in error) == (1, True)


async def test_command_prints_a_token_and_refuses_unknown_scopes(backend: Backend) -> None:
    code, out, _ = await command(backend, "create-token", "--subject", "me", "--scope", "bundles:read")
    assert code == 0
    async with running_registry(backend) as registry:
        assert (await registry.request("GET", "/job-bundles", token=out.strip())).status == 200
    code, out, error = await command(backend, "create-token", "--subject", "me", "--scope", "all")
    assert (code, out, "unknown scopes" in error) == (1, "", True)


async def test_logs_and_errors_hold_no_token(registry: RunningRegistry, capsys: pytest.CaptureFixture[str]) -> None:
    created = await create(registry, "ci", "bundles:read")
    await registry.request("GET", "/job-bundles", token=created["token"])
    await registry.request("GET", "/audit", token=created["token"])
    assert created["token"] not in capsys.readouterr().out
