"""Ask for runs at a steady rate until the file `stop` is there; then see each to its end, and say what was seen.

Requests that change something have a connection each, and an idempotency key; those that only look keep theirs open, as
clients do. What goes wrong is noted, and tried again.
"""

import asyncio
import contextlib
import gzip
import io
import itertools
import json
import os
import random
import sys
import tarfile
from collections import Counter
from pathlib import Path
from typing import Any

import aiohttp

REGISTRY, RUNNER = "http://registry:7101", "http://runner:7103"

_FINAL = {"succeeded", "failed", "cancelled", "timed_out", "lost"}
_MANIFEST = {"name": "patient", "version": "1.0.0", "runtime": "python3", "entry": "main.py"}
_HANDLER = """
import pathlib, time
def handler(context):
    for moment in range(int(context.parameters["moments"])):
        context.logger(f"moment {moment}")
        time.sleep(0.1)
    pathlib.Path(context.outputDir, "made.txt").write_text(str(context.run["attempt"]))
    return context.run["attempt"]
"""
_JOB = {
    "bundle": "patient@1.0.0",
    "retry": {"attempts": 5, "on": ["lost", "unavailable"], "backoff": {"seconds": 0.5, "maxSeconds": 2}},
    "limits": {"memoryBytes": 128 * 1024 * 1024},
}
_PATIENCE = aiohttp.ClientTimeout(total=30, sock_connect=5)
_TRIES = 60
_PAUSE_SECONDS = 0.5


class Load:
    """Users of a runner and a registry, each with a run of its own."""

    def __init__(self, fresh: aiohttp.ClientSession, kept: aiohttp.ClientSession, salt: str) -> None:
        self._fresh = fresh
        self._kept = kept
        self._salt = salt
        self.answers: Counter[str] = Counter()
        self.failures: list[str] = []
        self.runs: dict[int, str] = {}

    async def prepare(self) -> None:
        """Publish what is run."""
        bundle = _bundle()
        await self.ask("PUT", f"{REGISTRY}/job-bundles/patient/versions/1.0.0", data=bundle)
        await self.ask("PUT", f"{REGISTRY}/jobs/patient", json=_JOB)

    async def ask(self, method: str, url: str, **options: Any) -> Any:
        """The JSON of an answer, however often one has to ask for it; RuntimeError where the question is wrong."""
        session = self._kept if method == "GET" else self._fresh
        for _ in range(_TRIES):
            try:
                async with session.request(method, url, **options) as response:
                    body = await response.read()
                    self.answers[f"{method} {response.status}"] += 1
                    if response.status < 400:
                        return json.loads(body)
                    said = f"{method} {url}: {response.status} {body.decode('utf-8', 'replace')[:300]}"
                    if response.status < 500:
                        raise RuntimeError(said)
                    self.failures.append(said)
            except (aiohttp.ClientError, TimeoutError, OSError) as error:
                self.failures.append(f"{method} {url}: {error!r}")
            await asyncio.sleep(_PAUSE_SECONDS)
        raise RuntimeError(f"{method} {url} got no answer: {self.failures[-3:]}")

    async def use(self, number: int) -> None:
        """Start a run and watch it, and look into the registry meanwhile."""
        self.runs[number] = (await self._start(number))["id"]
        while (await self.ask("GET", f"{RUNNER}/runs/{self.runs[number]}"))["state"] not in _FINAL:
            await self.ask("GET", f"{REGISTRY}/job-bundles/patient/versions/1.0.0")
            await asyncio.sleep(_PAUSE_SECONDS)

    async def _start(self, number: int) -> Any:
        body = {"job": "patient", "parameters": {"moments": 5 + number % 15}}
        return await self.ask(
            "POST", f"{RUNNER}/runs", json=body, headers={"Idempotency-Key": f"{self._salt}-{number}"}
        )

    async def found(self, number: int) -> dict[str, Any]:
        """What became of a run, by all that is recorded of it; and who gets it who asks again."""
        run_id = self.runs[number]
        run = await self.ask("GET", f"{RUNNER}/runs/{run_id}")
        attempts = await self.ask("GET", f"{RUNNER}/runs/{run_id}/attempts")
        outputs = await self.ask("GET", f"{RUNNER}/runs/{run_id}/outputs")
        events = await self.ask(
            "GET", f"{REGISTRY}/audit", params={"subject": f"run/{run_id}", "action": "run.finished"}
        )
        return {
            "id": run_id,
            "again": (await self._start(number))["id"],
            "state": run["state"],
            "error": run["error"],
            "result": run["result"],
            "attempts": [attempt["state"] for attempt in attempts["items"]],
            "causes": [attempt["error"]["message"] for attempt in attempts["items"] if attempt["error"]],
            "outputs": [output["path"] for output in outputs["items"]],
            "ends": len(events["items"]),
        }


def _bundle() -> bytes:
    """The same bytes each time: publishing them again brings an artifact back that is damaged."""
    file = io.BytesIO()
    with gzip.GzipFile(fileobj=file, mode="wb", mtime=0) as packed, tarfile.open(fileobj=packed, mode="w") as tar:
        for name, text in (("manifest.json", json.dumps(_MANIFEST)), ("main.py", _HANDLER)):
            member = tarfile.TarInfo(name)
            member.size = len(text.encode())
            tar.addfile(member, io.BytesIO(text.encode()))
    return file.getvalue()


async def main(begun: Path, stop: Path, *, per_second: float, begin_with: int, salt: str) -> None:
    """Apply the load until `stop` is there; make `begun` when there is some."""
    headers = {"Authorization": f"Bearer {os.environ['STOWAGE_TOKEN']}"}
    async with contextlib.AsyncExitStack() as stack:
        fresh, kept = [
            await stack.enter_async_context(
                aiohttp.ClientSession(
                    headers=headers, timeout=_PATIENCE, connector=aiohttp.TCPConnector(force_close=once)
                )
            )
            for once in (True, False)
        ]
        load = Load(fresh, kept, salt)
        await load.prepare()
        users: list[asyncio.Task[None]] = []
        for number in itertools.count():
            if len(load.runs) >= begin_with:
                begun.touch()
            if stop.exists():
                break
            users.append(asyncio.create_task(load.use(number)))
            await asyncio.sleep(random.expovariate(per_second))  # nothing secret about it
        await asyncio.gather(*users)
        disturbed, load.failures = load.failures, []
        runs = [await load.found(number) for number in load.runs]
    print(json.dumps({"answers": load.answers, "failures": disturbed, "afterwards": load.failures, "runs": runs}))


if __name__ == "__main__":
    given = json.loads(sys.argv[1])
    asyncio.run(
        main(
            Path(given["begun"]),
            Path(given["stop"]),
            per_second=given["perSecond"],
            begin_with=given["beginWith"],
            salt=given["salt"],
        )
    )
