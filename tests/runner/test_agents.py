"""Runs that are executed by agents: processes that have a socket to the runner, and nothing else."""

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from libs.common.models import RunState
from services.runner.scratch import Scratch
from tests.backend import Backend
from tests.chaos.proxy import StallingProxy
from tests.registry.running import RunningRegistry, running_registry
from tests.runner.agents import SUCCEEDED, take
from tests.runner.bundles import node, publish, python
from tests.runner.children import REMOTE, Child, Children
from tests.runner.running import OPEN, RunningRunner, alive, running_runner

_WAITS_ONCE = """
import os, pathlib, time
def handler(context):
    print("attempt", context["run"]["attempt"], "pid", os.getpid(), flush=True)
    if context["run"]["attempt"] == 1:
        time.sleep(600)
    return context["run"]["attempt"]
"""


@pytest.fixture(scope="module")
def children(tmp_path_factory: pytest.TempPathFactory) -> Children:
    """Where the module's agents are started."""
    return Children(tmp_path_factory.mktemp("agents") / "scratch")


@pytest.fixture(scope="module")
async def shared_runner(
    shared_backend: Backend,
    registry: RunningRegistry,
    children: Children,
    tmp_path_factory: pytest.TempPathFactory,
) -> AsyncIterator[RunningRunner]:
    """A runner whose runs are executed by agents. They leave nothing."""
    scratch = tmp_path_factory.mktemp("runner") / "scratch"
    secrets = tmp_path_factory.mktemp("secrets")
    (secrets / "api-key").write_text("s3cr3t-value-of-the-key")
    async with running_runner(
        shared_backend,
        registry,
        scratch,
        open_place=children.open,
        secrets_dir=secrets,
        lease_seconds=4,
        sandbox="landlock",
        **REMOTE,
    ) as running:
        yield running
    Scratch.open(children.scratch).close()  # as the next agent does: some were killed
    assert list(children.scratch.iterdir()) == []


async def _job(registry: RunningRegistry, **definition: Any) -> None:
    body = {"bundle": "hello@latest", "retry": {"attempts": 2, "backoff": {"seconds": 0.1}}, **definition}
    assert (await registry.request("PUT", "/jobs/greet", json=body)).status in (200, 201)


async def _start_job(runner: RunningRunner) -> str:
    run_id: str = (await runner.request("POST", "/runs", json={"job": "greet"})).json["id"]
    return run_id


async def test_a_run_is_executed_as_by_the_runner_itself(runner: RunningRunner, registry: RunningRegistry) -> None:
    code = """
    import fs from "node:fs";
    export async function handler(context) {
        console.log("printed");
        context.logger("logged", { number: 1 });
        context.progress(0.5, "half");
        fs.writeFileSync(context.outputDir + "/small.txt", "small");
        fs.writeFileSync(context.outputDir + "/empty.json", "");
        fs.mkdirSync(context.outputDir + "/below");
        fs.writeFileSync(context.outputDir + "/below/large.bin", Buffer.alloc(20 * 1024 * 1024, 7));
        return { given: context.parameters.given, nested: JSON.parse("[".repeat(150) + "]".repeat(150)) };
    }
    """
    await publish(registry, node(code))
    run = await runner.run(parameters={"given": "ü\u2028"})
    assert run.state is RunState.SUCCEEDED
    assert run.result["given"] == "ü\u2028"
    assert run.progress == 0.5
    assert run.sandbox is not None
    assert run.timings.fetch_ms is not None
    assert run.timings.upload_ms is not None
    log = await runner.log(run.id)
    for said in ("[stdout] printed", '[logger] logged {"number": 1}', "verified and unpacked", "attempt 1 of"):
        assert said in log
    outputs = (await runner.request("GET", f"/runs/{run.id}/outputs")).json["items"]
    assert [(output["path"], output["size"]) for output in outputs] == [
        ("below/large.bin", 20 * 1024 * 1024),
        ("empty.json", 0),
        ("small.txt", 5),
    ]
    assert outputs[2]["contentType"] == "text/plain"
    large = await runner.request("GET", f"/runs/{run.id}/outputs/below/large.bin")  # its digest is compared
    assert large.body == bytes([7]) * (20 * 1024 * 1024)
    assert await runner.backend.fetch("SELECT FROM runner.uploads") == []


async def test_outputs_of_a_run_are_the_inputs_of_another(runner: RunningRunner, registry: RunningRegistry) -> None:
    code = """
    import pathlib
    def handler(context):
        found = {name: pathlib.Path(path) for name, path in context["inputs"].items()}
        (pathlib.Path(context["outputDir"]) / "one.txt").write_text("one")
        return {name: path.read_text() if path.is_file() else sorted(p.name for p in path.iterdir())
                for name, path in found.items()}
    """
    await publish(registry, python(code))
    first = await runner.run()
    inputs = {"file": {"run": first.id, "path": "one.txt"}, "all": {"run": first.id, "path": "/"}}
    second = await runner.run(inputs=inputs)
    assert second.result == {"file": "one", "all": ["one.txt"]}


async def test_secrets_are_given_and_masked(runner: RunningRunner, registry: RunningRegistry) -> None:
    code = """
    def handler(context):
        value = context["resolveSecret"]("api-key")
        print("it is", value, flush=True)
        return {"length": len(value), "value": value}
    """
    await publish(registry, python(code))
    await _job(registry, secrets=["api-key"])
    run = await runner.finished(await _start_job(runner))
    assert run.state is RunState.SUCCEEDED
    assert run.result == {"length": 23, "value": "***"}
    assert "it is ***" in await runner.log(run.id)


async def test_a_failure_is_told_with_the_end_of_the_log(runner: RunningRunner, registry: RunningRegistry) -> None:
    await publish(registry, node("export function handler() { console.error('before'); throw new TypeError('no'); }"))
    run = await runner.run()
    assert run.state is RunState.FAILED
    assert run.error is not None
    assert (run.error.type, run.error.message) == ("TypeError", "no")
    assert "before" in run.error.log_tail


async def test_a_failure_may_say_as_much_as_it_likes(runner: RunningRunner, registry: RunningRegistry) -> None:
    code = """
    export function handler(context) {
        context.progress(1, "p".repeat(100000));
        console.log("l".repeat(1000000));
        for (let number = 0; number < 20; number++) console.log("\\u0001".repeat(60000));
        context.logger("f".repeat(100000), { deep: "d".repeat(1000000) });
        const error = new Error("m".repeat(100000));
        error.name = "N".repeat(100000);
        throw error;
    }
    """
    await publish(registry, node(code))
    run = await runner.run()
    assert run.state is RunState.FAILED
    assert run.error is not None
    assert run.error.type == "N" * 100 + "…"
    assert run.error.message == "m" * 4000 + "…"


async def test_a_run_that_takes_too_long_has_timed_out(runner: RunningRunner, registry: RunningRegistry) -> None:
    await publish(registry, python("import time\ndef handler(context):\n    time.sleep(600)\n"))
    run = await runner.run(timeout_seconds=0.5)
    assert run.state is RunState.TIMED_OUT


async def test_a_cancelled_run_ends_and_its_job_is_ended(runner: RunningRunner, registry: RunningRegistry) -> None:
    await publish(registry, python(_WAITS_ONCE))
    run = await runner.start()
    pid = await _pid(runner, run.id, 1)
    await runner.client.cancel(run.id)
    assert (await runner.finished(run.id)).state is RunState.CANCELLED
    assert alive([pid]) == []


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGSTOP])
async def test_a_run_whose_agent_is_gone_is_lost_and_tried_again(
    runner: RunningRunner, registry: RunningRegistry, children: Children, number: signal.Signals
) -> None:
    await publish(registry, python(_WAITS_ONCE))
    await _job(registry)
    run_id = await _start_job(runner)
    pid = await _pid(runner, run_id, 1)
    _process(children.children[-1]).send_signal(number)
    run = await runner.finished(run_id)
    assert (run.state, run.result) == (RunState.SUCCEEDED, 2)
    attempts = (await runner.request("GET", f"/runs/{run_id}/attempts")).json["items"]
    assert [attempt["state"] for attempt in attempts] == ["lost", "succeeded"]
    if number is signal.SIGTERM:  # with the others it is left to whatever the agent was in: a pod, or the sweep
        assert alive([pid]) == []


async def test_a_run_whose_agent_is_gone_is_not_tried_again_where_its_job_does_not_want_it(
    runner: RunningRunner, registry: RunningRegistry, children: Children
) -> None:
    await publish(registry, python(_WAITS_ONCE))
    await _job(registry, retry={"attempts": 3, "on": ["unavailable"]})
    run_id = await _start_job(runner)
    await _pid(runner, run_id, 1)
    _process(children.children[-1]).kill()
    run = await runner.finished(run_id)
    assert (run.state, run.attempts) == (RunState.LOST, 1)
    assert run.error is not None
    assert run.error.type == "lost"


async def test_an_agent_that_loses_the_runner_ends_its_job(
    shared_backend: Backend, registry: RunningRegistry, runner: RunningRunner, children: Children
) -> None:
    await publish(registry, python(_WAITS_ONCE))
    await _job(registry)
    direct = children.url
    async with StallingProxy(runner.url).listening() as proxy:
        children.url = direct.replace(runner.url, proxy.url)
        try:
            run_id = await _start_job(runner)
            pid = await _pid(runner, run_id, 1)
            agent = _process(children.children[-1])
            with proxy.refusing():
                children.url = direct
                assert await agent.wait() == 1
            assert alive([pid]) == []
        finally:
            children.url = direct
        assert (await runner.finished(run_id)).result == 2


async def test_an_agent_that_hears_nothing_gives_up(
    runner: RunningRunner, registry: RunningRegistry, children: Children
) -> None:
    await publish(registry, python(_WAITS_ONCE))
    await _job(registry)
    direct = children.url
    async with StallingProxy(runner.url).listening() as proxy:
        children.url = direct.replace(runner.url, proxy.url)
        try:
            stall = proxy.stall(rb"GET /internal/attempt", after_bytes=1500)
            run_id = await _start_job(runner)
            await stall.reached.wait()
            agent = _process(children.children[-1])
            assert await agent.wait() == 1
        finally:
            children.url = direct
        assert (await runner.finished(run_id)).state is RunState.SUCCEEDED


async def test_runs_are_handed_back_when_the_runner_stops(own: Backend, tmp_path: Path, children: Children) -> None:
    mine = Children(tmp_path / "agents")
    async with running_registry(own) as registry:
        await publish(registry, python(_WAITS_ONCE))
        async with running_runner(
            own, registry, tmp_path / "scratch", open_place=mine.open, drain_seconds=0.2, sandbox="landlock", **REMOTE
        ) as runner:
            run = await runner.start()
            pid = await _pid(runner, run.id, 1)
        assert alive([pid]) == []
        (row,) = await own.fetch("SELECT state::text AS state, attempts FROM runner.runs")
        assert (row["state"], row["attempts"]) == ("queued", 1)
        attempts = await own.fetch("SELECT state::text AS state FROM runner.attempts")
        assert [attempt["state"] for attempt in attempts] == ["handed_back"]
        assert all(_process(child).returncode is not None for child in mine.children)


async def test_a_run_ends_while_its_runner_drains(own: Backend, tmp_path: Path) -> None:
    code = """
    import pathlib, time
    def handler(context):
        print("begun", flush=True)
        while not pathlib.Path(context["parameters"]["gate"]).exists():
            time.sleep(0.02)
        (pathlib.Path(context["outputDir"]) / "made.txt").write_text("made")
        return 1
    """
    mine = Children(tmp_path / "agents")
    async with running_registry(own) as registry:
        await publish(registry, python(code))
        async with running_runner(
            own, registry, tmp_path / "scratch", open_place=mine.open, drain_seconds=60, **OPEN, **REMOTE
        ) as runner:
            run = await runner.start(parameters={"gate": str(tmp_path / "gate")})
            await runner.logged(run.id, "begun")
            runner.stop.set()
            await _is_draining(runner)
            (tmp_path / "gate").touch()
        outputs = await own.fetch("SELECT path FROM runner.outputs")
        assert [output["path"] for output in outputs] == ["made.txt"]
        attempts = await own.fetch("SELECT state::text AS state FROM runner.attempts")
        assert [attempt["state"] for attempt in attempts] == ["succeeded"]


async def test_an_agent_may_come_while_its_runner_drains(own: Backend, tmp_path: Path) -> None:
    async with _untaken(own, tmp_path, drain_seconds=60) as (runner, registry, mine):
        await publish(registry, node("export const handler = () => 1;"))
        run = await runner.start()
        token = (await _placed(mine)).placement.token
        runner.stop.set()
        await _is_draining(runner)
        async with aiohttp.ClientSession() as session:
            agent = await take(session, mine.url, token)
            await agent.say(**SUCCEEDED)
            assert (await agent.hear("received"))["type"] == "received"
    (row,) = await own.fetch("SELECT id, state::text AS state FROM runner.runs")
    assert (row["id"], row["state"]) == (run.id, "succeeded")


async def test_a_run_that_no_agent_takes_is_not_started(own: Backend, tmp_path: Path) -> None:
    async with _untaken(own, tmp_path, kubernetes_start_seconds=0.5) as (runner, registry, _):
        await publish(registry, node("export const handler = () => 1;"))
        await _job(registry, retry={"attempts": 1})
        run = await runner.finished(await _start_job(runner))
        assert run.error is not None
        assert run.error.type == "not_started"


async def test_an_agent_of_another_version_is_refused(own: Backend, tmp_path: Path) -> None:
    async with _untaken(own, tmp_path) as (runner, registry, mine):
        await publish(registry, node("export const handler = () => 1;"))
        await _job(registry, retry={"attempts": 1})
        run_id = await _start_job(runner)
        token = (await _placed(mine)).placement.token
        async with aiohttp.ClientSession() as session:
            assert (await take(session, mine.url, token, version="0.0.9")).assigned == {"type": "closed"}
        run = await runner.finished(run_id)
        assert run.error is not None
        assert run.error.type == "not_started"
        assert "0.0.9" in run.error.message


async def test_an_attempt_is_taken_once_and_with_its_own_token_alone(own: Backend, tmp_path: Path) -> None:
    async with _untaken(own, tmp_path) as (runner, registry, mine):
        await publish(registry, node("export const handler = () => 1;"))
        run = await runner.start()
        token = (await _placed(mine)).placement.token
        user = await registry.token_for("somebody")
        for wrong in (user, runner.token, "stw_" + "x" * 43, "", token + "x"):
            assert await _status_of_taking(mine.url, wrong) == 401
        plain = await runner.request("GET", "/internal/attempt", token=token)
        assert plain.status == 409  # it is for WebSockets, and took nothing
        for path in ("/runs", f"/runs/{run.id}", f"/runs/{run.id}/log"):
            assert (await runner.request("GET", path, token=token)).status == 401
        async with aiohttp.ClientSession() as session:
            agent = await take(session, mine.url, token)
            assert agent.assigned["type"] == "assigned"
            assert await _status_of_taking(mine.url, token) == 401
            await runner.client.cancel(run.id)
            assert (await agent.hear("interrupt"))["reason"] == "cancel"
        assert (await runner.finished(run.id)).state is RunState.CANCELLED
        assert await _status_of_taking(mine.url, token) == 401


async def test_an_agent_is_given_no_credentials(own: Backend, tmp_path: Path) -> None:
    async with _untaken(own, tmp_path) as (runner, registry, mine):
        await publish(registry, node("export const handler = () => 1;"))
        await runner.start()
        token = (await _placed(mine)).placement.token
        async with aiohttp.ClientSession() as session:
            agent = await take(session, mine.url, token)
            given = repr(agent.assigned)
            request = (await agent.ask(type="read", key=agent.assigned["order"]["artifact"]["object_key"]))["request"]
        for credential in (own.secret_key, own.database_url, runner.token):
            assert credential not in given
            assert credential not in repr(request)


async def test_the_agents_route_is_only_there_for_agents_and_in_no_reference(
    runner: RunningRunner, own: Backend, tmp_path: Path
) -> None:
    document = (await runner.request("GET", "/openapi.json")).json
    assert "/internal/attempt" not in document["paths"]
    async with (
        running_registry(own) as registry,
        running_runner(own, registry, tmp_path / "scratch", **OPEN) as plain,
    ):
        assert (await plain.request("GET", "/internal/attempt")).status == 404


async def test_an_agent_without_settings_says_what_it_wants() -> None:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "services.runner", "run-one"),
        env={"PATH": os.environ["PATH"]},
        stderr=asyncio.subprocess.PIPE,
    )
    _, said = await process.communicate()
    assert process.returncode == 1
    assert b"STOWAGE_RUN_ONE_URL and STOWAGE_RUN_ONE_TOKEN must be set" in said


async def test_an_agent_asks_again_where_a_proxy_has_no_answer_for_it() -> None:
    answers = [502, 503, 401]

    async def answer(_request: web.Request) -> web.Response:
        return web.Response(status=answers.pop(0))

    application = web.Application()
    application.router.add_get("/", answer)
    server = web.AppRunner(application)
    await server.setup()
    await web.TCPSite(server, "127.0.0.1", 0).start()
    url = f"http://127.0.0.1:{server.addresses[0][1]}/"
    try:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "services.runner", "run-one"),
            env={"PATH": os.environ["PATH"], "STOWAGE_RUN_ONE_URL": url, "STOWAGE_RUN_ONE_TOKEN": "t"},
            stderr=asyncio.subprocess.PIPE,
        )
        _, said = await process.communicate()
    finally:
        await server.cleanup()
    assert answers == []
    assert b"answered 401" in said


async def test_the_place_is_swept_when_the_runner_starts(runner: RunningRunner, children: Children) -> None:
    assert runner.url
    assert children.swept >= 1


@contextlib.asynccontextmanager
async def _untaken(
    own: Backend, tmp_path: Path, **settings: Any
) -> AsyncIterator[tuple[RunningRunner, RunningRegistry, Children]]:
    """A runner whose attempts nobody takes."""
    mine = Children(tmp_path / "agents", starts=False)
    async with (
        running_registry(own) as registry,
        running_runner(
            own, registry, tmp_path / "scratch", open_place=mine.open, **{**REMOTE, "drain_seconds": 0, **settings}
        ) as runner,
    ):
        yield runner, registry, mine


async def _is_draining(runner: RunningRunner) -> None:
    while (await runner.request("GET", "/readyz")).json["checks"].get("process") != "stopping":  # noqa: ASYNC110
        await asyncio.sleep(0.02)


async def _placed(children: Children) -> Child:
    while not children.children:  # noqa: ASYNC110
        await asyncio.sleep(0.02)
    return children.children[-1]


async def _status_of_taking(url: str, token: str) -> int:
    async with aiohttp.ClientSession() as session:
        try:
            await take(session, url, token)
        except aiohttp.WSServerHandshakeError as error:
            return error.status
    return 101


async def _pid(runner: RunningRunner, run_id: str, attempt: int) -> int:
    """The process of a job: with Landlock alone it has the same number for itself as for the machine."""
    await runner.logged(run_id, f"attempt {attempt} pid")
    line = next(line for line in (await runner.log(run_id)).splitlines() if f"attempt {attempt} pid" in line)
    return int(line.split()[-1])


def _process(child: Child) -> asyncio.subprocess.Process:
    assert child.process is not None
    return child.process
