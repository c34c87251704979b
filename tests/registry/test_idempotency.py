"""Requests that are repeated with their key: carried out once, answered the same, whoever dies in between."""

import asyncio
import base64
from typing import Any

import aiohttp
import asyncpg
import pytest

from tests.backend import Backend
from tests.registry.bundles import bundle
from tests.registry.running import Answer, RunningRegistry, registry_process, running_registry

_TOKEN = {"subject": "ci", "scopes": ["bundles:read"]}


async def _post(registry: RunningRegistry, path: str, key: str, body: Any, token: str = "") -> Answer:
    return await registry.request("POST", path, token=token, json=body, headers={"Idempotency-Key": key})


async def _count(backend: Backend, rows: str) -> int:
    (found,) = await backend.fetch(f"SELECT count(*) AS n FROM {rows}")  # noqa: S608
    return int(found["n"])


def _kind(answer: Answer) -> str:
    return str(answer.json["type"]).rpartition(":")[2]


async def test_repeated_publication_is_answered_as_the_first_time(registry: RunningRegistry) -> None:
    data = base64.b64encode(bundle()).decode()
    body = {"slug": "hello", "version": "1.0.0", "manifest": {"version": "1.0.0"}, "artifact": {"data": data}}
    first = await _post(registry, "/job-bundles", "k", body)
    again = await _post(registry, "/job-bundles", "k", body)
    without = await registry.request("POST", "/job-bundles", json=body)
    assert (first.status, again.status, without.status) == (201, 201, 200)
    assert again.body == first.body
    assert again.headers["Content-Type"] == first.headers["Content-Type"]
    assert ("Idempotent-Replayed" in first.headers, again.headers["Idempotent-Replayed"]) == (False, "true")
    assert again.headers["X-Request-Id"] != first.headers["X-Request-Id"]


async def test_repeated_rollback_adds_one_revision(registry: RunningRegistry) -> None:
    await registry.publish(bundle())
    await registry.publish(bundle(files={"x": "1"}), force="true", reason="better")
    path, body = "/job-bundles/hello/versions/1.0.0/rollback", {"toRevision": 1, "reason": "worse"}
    first = await _post(registry, path, "k", body)
    await registry.publish(bundle(files={"x": "2"}), force="true", reason="better still")
    again = await _post(registry, path, "k", body)
    assert (first.status, again.status, again.body) == (200, 200, first.body)
    assert await _count(registry.backend, "registry.revisions") == 4


async def test_repeated_creation_of_a_token_names_it_and_keeps_no_secret(registry: RunningRegistry) -> None:
    first = await _post(registry, "/tokens", "k", _TOKEN)
    again = await _post(registry, "/tokens", "k", _TOKEN)
    assert (first.status, again.status, _kind(again)) == (201, 409, "token-shown-before")
    assert again.json["id"] == first.json["id"]
    assert f"DELETE /tokens/{first.json['id']}" in again.json["detail"]
    assert again.headers["Idempotent-Replayed"] == "true"
    kept = await registry.backend.fetch("SELECT k::text FROM registry.idempotency_keys k")
    assert first.json["token"] not in str(kept)
    assert await _count(registry.backend, "registry.tokens WHERE subject = 'ci'") == 1


async def test_key_is_for_one_request_of_one_subject(registry: RunningRegistry) -> None:
    await _post(registry, "/tokens", "k", _TOKEN)
    for path, body in (("/tokens", {**_TOKEN, "subject": "cd"}), ("/job-bundles", _TOKEN)):
        refused = await _post(registry, path, "k", body)
        assert (refused.status, _kind(refused)) == (422, "idempotency-key-reused")
    other = await registry.token_for("other", "admin")
    assert (await _post(registry, "/tokens", "k", _TOKEN, other)).status == 201
    assert (await _post(registry, "/tokens", "l", _TOKEN)).status == 201
    for key in ("k" * 201, "ä"):
        assert (await _post(registry, "/tokens", key, _TOKEN)).status == 400


async def test_refusal_is_not_kept(registry: RunningRegistry) -> None:
    path, body = "/job-bundles/hello/versions/1.0.0/rollback", {"toRevision": 1, "reason": "worse"}
    assert (await _post(registry, path, "k", body)).status == 404
    await registry.publish(bundle())
    await registry.publish(bundle(files={"x": "1"}), force="true", reason="better")
    assert (await _post(registry, path, "k", body)).status == 200
    assert (await _post(registry, "/tokens", "l", {**_TOKEN, "scopes": ["all"]})).status == 400
    assert (await _post(registry, "/tokens", "l", _TOKEN)).status == 201


async def test_of_many_at_once_one_is_carried_out(registry: RunningRegistry) -> None:
    answers = await asyncio.gather(*(_post(registry, "/tokens", "k", _TOKEN) for _ in range(12)))
    assert sorted(answer.status for answer in answers) == [201] + [409] * 11
    for answer in answers:
        if answer.status == 409 and _kind(answer) == "idempotency-key-in-use":
            assert 1 <= int(answer.headers["Retry-After"]) <= 15
    assert await _count(registry.backend, "registry.tokens WHERE subject = 'ci'") == 1


async def test_key_is_free_again_after_its_time(backend: Backend) -> None:
    async with running_registry(backend, idempotency_key_seconds=0.2) as registry:
        assert (await _post(registry, "/tokens", "k", _TOKEN)).status == 201
        await backend.fetch("UPDATE registry.idempotency_keys SET held_until = now()")
        async with asyncio.timeout(20):
            while await _count(backend, "registry.idempotency_keys"):  # noqa: ASYNC110
                await asyncio.sleep(0.05)
        assert (await _post(registry, "/tokens", "k", {**_TOKEN, "subject": "cd"})).status == 201


@pytest.mark.parametrize("when", ["before the change", "while it is taken over"])
async def test_killed_or_paused_registry_leaves_a_key_that_works_once(
    backend: Backend, registry: RunningRegistry, when: str
) -> None:
    async with registry_process(backend) as (process, port), aiohttp.ClientSession() as session:
        blocker = await asyncpg.connect(backend.database_url)
        async with blocker.transaction():
            # Tokens are still read, so that the request comes to the point where it would write one.
            await blocker.execute("LOCK TABLE registry.tokens IN SHARE ROW EXCLUSIVE MODE")
            request = asyncio.create_task(
                session.post(
                    f"http://127.0.0.1:{port}/tokens",
                    json=_TOKEN,
                    headers={"Idempotency-Key": "k", "Authorization": f"Bearer {registry.token}"},
                )
            )
            async with asyncio.timeout(20):
                while not await _count(backend, "registry.idempotency_keys"):  # noqa: ASYNC110
                    await asyncio.sleep(0.02)
            if when == "before the change":
                process.kill()
                await asyncio.gather(request, return_exceptions=True)
            held = await _post(registry, "/tokens", "k", _TOKEN)
            assert (held.status, _kind(held)) == (409, "idempotency-key-in-use")
            assert 1 <= int(held.headers["Retry-After"]) <= 15
            await backend.fetch("UPDATE registry.idempotency_keys SET held_until = now()")
            second = asyncio.create_task(_post(registry, "/tokens", "k", _TOKEN))
            async with asyncio.timeout(20):  # it has taken over, and waits behind the first
                while not await _count(backend, "registry.idempotency_keys WHERE held_until > now()"):  # noqa: ASYNC110
                    await asyncio.sleep(0.02)
        await blocker.close()
        if when == "while it is taken over":
            async with await request as response:
                assert (response.status, "idempotency-key-in-use" in await response.text()) == (409, True)
        assert (await second).status == 201
    assert await _count(backend, "registry.tokens WHERE subject = 'ci'") == 1
    assert _kind(await _post(registry, "/tokens", "k", _TOKEN)) == "token-shown-before"
