"""Runs of many kinds, asked for at a steady rate by a client that does not give up."""

import asyncio
import contextlib
import itertools
import random
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp

from libs.common.models import (
    Backoff,
    InputSource,
    JobDefinition,
    Limits,
    RetryOn,
    RetryPolicy,
    StepDefinition,
    WorkflowDefinition,
)
from tests.registry.running import RunningRegistry
from tests.runner.bundles import node, publish, python

OUTPUTS = {"report.txt": 12, "empty": 0, "plots/größe & höhe.svg": 2_000, "data/big.bin": 9 * 1024 * 1024}
"""What some runs leave, and how many bytes each file has. The last one is uploaded in parts."""

_PATIENCE = aiohttp.ClientTimeout(total=8, sock_connect=2)
_PAUSE_SECONDS = 0.3
_IN_FLIGHT = 24

_NODE = """
    import fs from 'node:fs';
    import path from 'node:path';
    export async function handler({ parameters, run, logger, outputDir, inputs }) {
      const note = (word) => {
        try { fs.appendFileSync(parameters.trace, `${word} ${run.id} ${run.attempt}\\n`) } catch { /* confined */ }
      };
      const pause = (ms) => new Promise((go) => setTimeout(go, ms));
      note('begin');
      for (const place of Object.values(inputs)) if (fs.statSync(place).size !== 12) throw new Error('a bad input');
      for (let i = 0; i < (parameters.lines ?? 3); i++) {
        logger(`line ${i} of attempt ${run.attempt}`);
        await pause(parameters.pauseMs ?? 0);
      }
      for (const [name, size] of Object.entries(parameters.outputs ?? {})) {
        fs.mkdirSync(path.dirname(path.join(outputDir, name)), { recursive: true });
        fs.writeFileSync(path.join(outputDir, name), Buffer.alloc(size, `${run.id} ${run.attempt} ${name} `));
      }
      if (parameters.hang) await pause(600000);
      if (run.attempt < (parameters.failUntil ?? 1)) throw new Error('as asked');
      note('done');
      return run.attempt;
    }
"""

_PYTHON = """
    def handler(context):
        parameters, run = context.parameters, context.run
        def note(word):
            try:
                with open(parameters["trace"], "a") as trace:
                    trace.write(f"{word} {run['id']} {run['attempt']}\\n")
            except OSError:
                pass  # confined
        note("begin")
        for i in range(5):
            context.logger(f"line {i} of attempt {run['attempt']}")
        note("done")
        return run["attempt"]
"""

_RESTLESS = RetryPolicy(
    attempts=5, on=[RetryOn.LOST, RetryOn.UNAVAILABLE, RetryOn.FAILED], backoff=Backoff(seconds=0.2, max_seconds=1)
)
_JOBS = {
    "flaky": JobDefinition(bundle="hello@latest", retry=_RESTLESS, parameters={"failUntil": 2}),
    "once": JobDefinition(bundle="hello@latest", retry=RetryPolicy(on=[]), parameters={"lines": 20, "pauseMs": 50}),
    "keyed": JobDefinition(
        bundle="hello@latest", concurrency_key="{{ parameters.key }}", parameters={"lines": 10, "pauseMs": 40}
    ),
    "brief": JobDefinition(bundle="hello@latest", limits=Limits(timeout_seconds=1), parameters={"hang": True}),
    "step": JobDefinition(bundle="hello@latest", retry=_RESTLESS, parameters={"outputs": {"report.txt": 12}}),
}


def _workflow(trace: Path) -> WorkflowDefinition:
    def step(name: str, *needed: str) -> StepDefinition:
        inputs = {other: InputSource(step=other, path="report.txt") for other in needed}
        return StepDefinition(
            name=name, job="step", depends_on=list(needed), inputs=inputs, parameters={"trace": str(trace)}
        )

    return WorkflowDefinition(steps=[step("first"), step("left", "first"), step("right", "first", "left")])


@dataclass
class Follower:
    """Somebody who follows the log of a run, from whatever runner answers, and goes on where he was."""

    run_id: str
    lines: list[str] = field(default_factory=list)
    reconnected: int = 0


@dataclass
class Accepted:
    """What was accepted: runs and workflow runs by their idempotency keys, and who follows which log."""

    runs: dict[str, str] = field(default_factory=dict)
    flows: dict[str, str] = field(default_factory=dict)
    followers: list[Follower] = field(default_factory=list)


class Load:
    """Asks for runs. `urls` says where the runners are just now."""

    def __init__(self, random_: random.Random, urls: Callable[[], list[str]], token: str, trace: Path) -> None:
        self._random = random_
        self._urls = urls
        self._headers = {"Authorization": f"Bearer {token}"}
        self._trace = trace
        self._room = asyncio.Semaphore(_IN_FLIGHT)
        self.accepted = Accepted()
        self.refused: list[str] = []

    async def prepare(self, registry: RunningRegistry) -> None:
        """Publish what the runs are made of."""
        await publish(registry, node(_NODE))
        await publish(registry, python(_PYTHON, slug="snake"), "snake")
        for slug, definition in _JOBS.items():
            await registry.client.put_job(slug, definition)
        await registry.client.put_workflow("flow", _workflow(self._trace))

    @contextlib.asynccontextmanager
    async def applied(self, per_second: float, *, calm_seconds: float) -> AsyncIterator[None]:
        """Ask for runs while the context is open; then see each to its end, for no longer than `calm_seconds`."""
        async with aiohttp.ClientSession(headers=self._headers, timeout=_PATIENCE) as session:
            self._session = session
            users: set[asyncio.Task[None]] = set()
            asking = asyncio.create_task(self._ask(users, per_second))
            try:
                yield
                asking.cancel()
                await asyncio.wait([asking, *users], timeout=calm_seconds)
            finally:
                for task in (asking, *users):
                    task.cancel()
                ended = await asyncio.gather(*users, return_exceptions=True)
            self.refused += [f"a user: {error!r}" for error in ended if isinstance(error, Exception)]

    async def _ask(self, users: "set[asyncio.Task[None]]", per_second: float) -> None:
        for number in itertools.count():
            await asyncio.sleep(self._random.expovariate(per_second))
            await self._room.acquire()
            users.add(asyncio.create_task(self._use(number, self._random.random(), self._random.random())))

    async def _use(self, number: int, kind: float, when: float) -> None:
        try:
            match int(kind * 12):
                case 0:
                    await self._flow(number, when)
                case 1:
                    await self._run(number, {"bundle": "hello@latest"}, {"outputs": OUTPUTS}, follow=True)
                case 2:
                    await self._run(number, {"bundle": "hello@latest"}, {"outputs": OUTPUTS})
                case 3:
                    await self._run(number, {"bundle": "hello@latest"}, {"lines": 60, "pauseMs": 50}, follow=True)
                case 4:
                    await self._run(number, {"bundle": "hello@latest"}, {"lines": 100, "pauseMs": 50}, cancel=when)
                case 5:
                    await self._run(number, {"bundle": "hello@latest"}, {"failUntil": 99})
                case 6:
                    await self._run(number, {"job": "keyed"}, {"key": "ab"[int(when * 2)]})
                case 7:
                    await self._run(number, {"bundle": "snake@latest"}, {})
                case 8 | 9 | 10 as index:
                    await self._run(number, {"job": ("flaky", "once", "brief")[index - 8]}, {}, follow=index == 8)
                case _:
                    await self._run(number, {"bundle": "hello@latest"}, {})
        finally:
            self._room.release()

    async def _run(
        self,
        number: int,
        target: dict[str, str],
        parameters: dict[str, Any],
        *,
        follow: bool = False,
        cancel: float | None = None,
    ) -> None:
        key = f"run {number}"
        body = {**target, "parameters": {"trace": str(self._trace), **parameters}}
        run_id = (await self._post("/runs", body, {"Idempotency-Key": key}))["id"]
        self.accepted.runs[key] = run_id
        if follow:
            follower = Follower(run_id)
            self.accepted.followers.append(follower)
            await self._follow(follower)
        if cancel is not None:
            await asyncio.sleep(4 * cancel)
            await self._post(f"/runs/{run_id}/cancel", None)
        await self._until_over(f"/runs/{run_id}")

    async def _flow(self, number: int, when: float) -> None:
        key = f"flow {number}"
        found = await self._post("/workflows/flow/runs", {"parameters": {}}, {"Idempotency-Key": key})
        self.accepted.flows[key] = found["id"]
        if when < 0.2:
            await asyncio.sleep(5 * when)
            await self._post(f"/workflow-runs/{found['id']}/cancel", None)
        await self._until_over(f"/workflow-runs/{found['id']}")

    async def _post(self, path: str, body: Any, headers: dict[str, str] | None = None) -> dict[str, Any]:
        """The answer, whoever gives it at last; an empty one where there is a conflict."""
        while True:
            answer = await self._once("POST", path, json=body, headers=headers)
            if answer is not None:
                return answer
            await asyncio.sleep(_PAUSE_SECONDS)

    async def _until_over(self, path: str) -> None:
        while True:
            answer = await self._once("GET", path)
            if answer is not None and answer["finishedAt"] is not None:
                return
            await asyncio.sleep(_PAUSE_SECONDS)

    async def _once(self, method: str, path: str, **options: Any) -> dict[str, Any] | None:
        """The answer of some runner, or None where it gave none that counts."""
        with contextlib.suppress(aiohttp.ClientError, TimeoutError, OSError):
            async with self._session.request(method, self._url() + path, **options) as response:
                if response.status in (500, 502, 503, 504, 429):
                    if response.status == 500:
                        self.refused.append(f"{method} {path}: 500 {(await response.read())[:300]!r}")
                    return None
                if response.status == 409:
                    # Whoever was killed with it holds a key for a while.
                    return None if b"idempotency-key-in-use" in await response.read() else {}
                if response.status >= 400:
                    self.refused.append(f"{method} {path}: {response.status} {(await response.read())[:300]!r}")
                found: dict[str, Any] = await response.json()
                return found
        return None

    async def _follow(self, follower: Follower) -> None:
        """Read on until the run has ended and there is nothing more, however often the connection breaks."""
        path = f"/runs/{follower.run_id}"
        while True:
            run = await self._once("GET", path)
            over = run is not None and run["finishedAt"] is not None
            complete = await self._read(follower)
            if over and complete:
                return
            follower.reconnected += 1
            await asyncio.sleep(_PAUSE_SECONDS)

    async def _read(self, follower: Follower) -> bool:
        """Read to the end; whether it was the end, and not a broken connection."""
        parameters = {"follow": "true", "after": str(len(follower.lines))}
        waiting = aiohttp.ClientTimeout(sock_connect=2, sock_read=10)
        path = f"/runs/{follower.run_id}/log"
        rest = b""
        with contextlib.suppress(aiohttp.ClientError, TimeoutError, OSError):
            async with self._session.get(self._url() + path, params=parameters, timeout=waiting) as response:
                if response.status == 200:
                    async for piece in response.content.iter_any():
                        *lines, rest = (rest + piece).split(b"\n")
                        follower.lines += [line.decode() for line in lines]
                    return True
        return False

    def _url(self) -> str:
        urls = self._urls()
        if not urls:
            raise ConnectionRefusedError("no runner is up")
        return self._random.choice(urls)
