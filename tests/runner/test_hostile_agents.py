"""Agents that say what they may not: their run fails, nothing of it is recorded, and the runner goes on."""

import asyncio
import contextlib
import hashlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import aiohttp
import pytest

from libs.common.models import Run, RunState
from libs.common.object_uploads import PART_BYTES
from libs.common.s3_requests import PresignedRequest, PresignedRequests
from tests.backend import Backend
from tests.registry.running import RunningRegistry
from tests.runner.agents import PHASES, SUCCEEDED, PlayedAgent, take
from tests.runner.bundles import node, publish
from tests.runner.children import REMOTE, Children
from tests.runner.running import RunningRunner, running_runner

_DIGEST = f"sha256:{hashlib.sha256(b'content').hexdigest()}"
_CONTENT = {"path": "a.txt", "size": 7, "digest": _DIGEST}

Play = Callable[[PlayedAgent], Awaitable[None]]


@pytest.fixture(scope="module")
def children(tmp_path_factory: pytest.TempPathFactory) -> Children:
    """A place where no agent is started: the tests are the agents."""
    return Children(tmp_path_factory.mktemp("agents") / "scratch", starts=False)


@pytest.fixture(scope="module")
async def shared_runner(
    shared_backend: Backend,
    registry: RunningRegistry,
    children: Children,
    tmp_path_factory: pytest.TempPathFactory,
) -> AsyncIterator[RunningRunner]:
    """A runner whose attempts are made by the tests."""
    await publish(registry, node("export const handler = () => 1;"))
    job = {"bundle": "hello@latest", "retry": {"attempts": 1}}
    await registry.request("PUT", "/jobs/once", json=job)
    async with running_runner(
        shared_backend,
        registry,
        tmp_path_factory.mktemp("runner") / "scratch",
        open_place=children.open,
        lease_seconds=4,
        max_outputs=3,
        max_output_bytes=2 * PART_BYTES,
        max_result_bytes=1000,
        max_log_bytes=100_000,
        **REMOTE,
    ) as running:
        yield running


@pytest.fixture
async def played(runner: RunningRunner, children: Children) -> AsyncIterator[Callable[[Play], Awaitable[Run]]]:
    """Plays an agent for a new run, which is returned when it has ended."""

    async def play(part: Play) -> Run:
        before = len(children.children)
        run_id = (await runner.request("POST", "/runs", json={"job": "once"})).json["id"]
        while len(children.children) == before:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        token = children.children[-1].placement.token
        async with aiohttp.ClientSession() as session:
            agent = await take(session, children.url, token)
            with contextlib.suppress(ConnectionError):  # it may have been thrown out already
                await part(agent)
            return await runner.finished(run_id)

    yield play
    run = await play(lambda agent: agent.say(**SUCCEEDED))  # and the runner goes on
    assert (run.state, run.result) == (RunState.SUCCEEDED, 1)


def _says(text: str | bytes) -> Play:
    async def part(agent: PlayedAgent) -> None:
        await (agent.say_bytes(text) if isinstance(text, bytes) else agent.say_text(text))

    return part


def _asks(*questions: dict[str, Any]) -> Play:
    async def part(agent: PlayedAgent) -> None:
        for question in questions:
            await agent.ask(**question)

    return part


_WRITES: dict[str, Any] = {"type": "uploading", "in_parts": True}


@pytest.mark.parametrize(
    "part",
    [
        _says("no JSON"),
        _says("[" * 100_000),
        _says('{"type": "ended"}'),
        _says('{"type": "become", "what": "root"}'),
        _says(json.dumps({**SUCCEEDED, "more": 1})),
        _says(json.dumps({**SUCCEEDED, "result": "NaN"})),
        _says(json.dumps({**SUCCEEDED, "result": json.dumps("x" * 2000)})),
        _says(json.dumps({**SUCCEEDED, "result": '"\\u0000"'})),
        _says(json.dumps({**SUCCEEDED, "state": "lost"})),
        _says(json.dumps({**SUCCEEDED, "state": "cancelled"})),
        _says(json.dumps({**SUCCEEDED, "phases": {"fetch_ms": -1}})),
        _says(json.dumps({"type": "started", "phases": PHASES, "confined": {"level": "perfect"}})),
        _says(json.dumps({"type": "progress", "fraction": 2, "message": None})),
        _says(json.dumps({"type": "lines", "lines": [{"source": "audit", "level": "info", "message": "x"}]})),
        _asks({"type": "read", "key": "artifacts/sha256/ab/abcd.tgz"}),
        _asks({"type": "read", "key": "logs/runs/another.log"}),
        _asks({"type": "put", **_CONTENT}),
        _asks({"type": "upload", "path": "a.bin"}),
        _asks(_WRITES, _WRITES),
        _asks({**_WRITES, "in_parts": False}, {"type": "upload", "path": "a.bin"}),
        _asks(_WRITES, {"type": "put", **_CONTENT, "path": "../../artifacts/x"}),
        _asks(_WRITES, {"type": "put", **_CONTENT, "path": "/etc/passwd"}),
        _asks(_WRITES, {"type": "put", **_CONTENT, "path": "a//b"}),
        _asks(_WRITES, {"type": "put", **_CONTENT, "size": PART_BYTES}),
        _asks(_WRITES, {"type": "put", **_CONTENT}, {"type": "put", **_CONTENT, "size": 8}),
        _asks(_WRITES, *({"type": "put", **_CONTENT, "path": f"{number}"} for number in range(4))),
        _asks(_WRITES, {"type": "part", **_CONTENT, "number": 1}),
        _asks(_WRITES, {"type": "upload", "path": "a.txt"}, {"type": "part", **_CONTENT, "number": 2}),
        _asks(_WRITES, {"type": "upload", "path": "a.txt"}, {"type": "part", **_CONTENT, "number": 1, "size": 2**40}),
        _asks(
            _WRITES,
            {"type": "upload", "path": "a.txt"},
            *({"type": "part", **_CONTENT, "number": number + 1, "size": PART_BYTES} for number in range(3)),
        ),
        _asks(
            _WRITES,
            {"type": "upload", "path": "a.txt"},
            {"type": "complete", "path": "a.txt", "digest": _DIGEST, "etags": ["x"]},
        ),
    ],
)
async def test_what_makes_no_sense_ends_the_run_and_nothing_else(
    runner: RunningRunner, played: Callable[[Play], Awaitable[Run]], part: Play
) -> None:
    run = await played(part)
    assert run.state is RunState.FAILED
    assert run.error is not None
    assert run.error.type == "agent_not_understood"
    assert run.result is None
    assert (await runner.request("GET", f"/runs/{run.id}/outputs")).json["items"] == []
    assert runner.backend.keys(f"outputs/{run.id}/") == []


async def test_a_name_that_no_output_can_have_fails_the_run(played: Callable[[Play], Awaitable[Run]]) -> None:
    run = await played(_asks(_WRITES, {"type": "put", **_CONTENT, "path": "a\u202eb"}))
    assert run.error is not None
    assert run.error.type == "output_name"


@pytest.mark.parametrize("message", ["x" * 8_000_000, b"\x00\x01"])
async def test_a_message_that_is_too_large_or_no_text_loses_the_agent(
    played: Callable[[Play], Awaitable[Run]], message: str | bytes
) -> None:
    run = await played(_says(message))
    assert run.state is RunState.LOST


async def test_outputs_that_were_never_sent_are_not_recorded(
    runner: RunningRunner, played: Callable[[Play], Awaitable[Run]]
) -> None:
    async def part(agent: PlayedAgent) -> None:
        await agent.ask(**_WRITES)
        assert (await agent.ask(type="put", **_CONTENT))["type"] == "answer"
        await agent.say(**SUCCEEDED)

    run = await played(part)
    assert run.state is RunState.FAILED
    assert run.error is not None
    assert run.error.type == "outputs_incomplete"
    assert (await runner.request("GET", f"/runs/{run.id}/outputs")).json["items"] == []


async def test_what_a_failed_run_has_sent_is_removed(
    runner: RunningRunner, played: Callable[[Play], Awaitable[Run]]
) -> None:
    async def part(agent: PlayedAgent) -> None:
        await agent.ask(**_WRITES)
        answer = await agent.ask(type="put", **_CONTENT)
        await asyncio.to_thread(_send, answer["request"], b"content")
        assert len(runner.backend.keys("outputs/")) == 1
        await agent.say(**{**SUCCEEDED, "state": "failed", "kind": "Odd", "error": "it did not work"})

    run = await played(part)
    assert run.error is not None
    assert (run.error.type, run.error.message) == ("Odd", "it did not work")
    assert runner.backend.keys("outputs/") == []


async def test_an_agent_reads_its_bundle_and_writes_its_outputs(
    runner: RunningRunner, played: Callable[[Play], Awaitable[Run]]
) -> None:
    async def part(agent: PlayedAgent) -> None:
        key = agent.assigned["order"]["artifact"]["object_key"]
        bundle = await asyncio.to_thread(_send, (await agent.ask(type="read", key=key))["request"], None)
        assert f"sha256:{hashlib.sha256(bundle).hexdigest()}" == agent.assigned["order"]["digest"]
        await agent.ask(**_WRITES)
        await asyncio.to_thread(_send, (await agent.ask(type="put", **_CONTENT))["request"], b"content")
        await agent.say(**SUCCEEDED)

    run = await played(part)
    assert run.state is RunState.SUCCEEDED
    (output,) = (await runner.request("GET", f"/runs/{run.id}/outputs")).json["items"]
    assert output == {"path": "a.txt", "size": 7, "digest": _DIGEST, "contentType": "text/plain"}


async def test_a_log_without_end_is_cut_whatever_its_lines_are_called(
    runner: RunningRunner, played: Callable[[Play], Awaitable[Run]]
) -> None:
    line = {"source": "system", "level": "info", "message": "x" * 1000}

    async def part(agent: PlayedAgent) -> None:
        for _ in range(10):
            await agent.say(type="lines", lines=[line] * 100)
        await agent.say(**SUCCEEDED)

    run = await played(part)
    assert run.state is RunState.SUCCEEDED
    log = await runner.log(run.id)
    assert len(log) < 250_000
    assert "more lines were dropped: the log is full" in log


async def test_an_agent_that_asks_too_much_at_a_time_is_left(played: Callable[[Play], Awaitable[Run]]) -> None:
    async def part(agent: PlayedAgent) -> None:
        await agent.ask(**_WRITES)
        for number in range(500):
            await agent.say(type="upload", id=number + 2, path=f"{number}")

    run = await played(part)
    assert run.error is not None
    assert run.error.type == "agent_not_understood"


async def test_texts_of_an_agent_are_cleaned(runner: RunningRunner, played: Callable[[Play], Awaitable[Run]]) -> None:
    async def part(agent: PlayedAgent) -> None:
        line = {"source": "logger", "level": "info", "message": "a\x00b", "fields": {"k\x00": "\ud800"}}
        await agent.say(type="lines", lines=[line])
        await agent.say(**{**SUCCEEDED, "state": "failed", "kind": "a\x00b", "error": "\x00", "log_tail": ["\x00"]})

    run = await played(part)
    assert run.state is RunState.FAILED
    assert run.error is not None
    assert run.error.type == "a\ufffdb"
    assert "a\ufffdb" in await runner.log(run.id)


def _send(request: dict[str, Any], body: bytes | None) -> bytes:
    requests = PresignedRequests(connections=1)
    try:
        answer = requests.send(PresignedRequest(**request), body=body)
        content: bytes = answer.content
        return content
    finally:
        requests.close()
