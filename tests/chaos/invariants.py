"""What has to hold when everything is calm again, whatever went wrong before.

A handler may be executed more than once where its job's policy says so: attempts that were lost or handed back may have
had effects outside of their run. What is recorded is recorded once: one final state, one event, one attempt's outputs.
"""

import asyncio
import difflib
import hashlib
import itertools
import json
import os
import re
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import asyncpg

from services.runner.outputs import content_type_of
from tests.backend import Backend
from tests.chaos.load import Accepted

_FINAL = {"succeeded", "failed", "cancelled", "timed_out", "lost"}
_LINE = re.compile(r"^(\S+) \[logger\] line (\d+) of attempt (\d+)$")
_RUNS = """
    SELECT id, state::text AS state, job, parameters, retry, attempts, result, error, log_key, finished_at,
           concurrency_key, lease, has_turn
    FROM runner.runs ORDER BY id
"""
_ATTEMPTS = (
    "SELECT run_id, number, state::text AS state, error, started_at, ended_at FROM runner.attempts ORDER BY number"
)
_KEYS = "SELECT key, body::jsonb ->> 'id' AS id FROM runner.idempotency_keys"
_EMPTY = ("runner.queue_pgqueuer", "runner.uploads", "runner.journal", "runner.log_writers")

Row = Mapping[str, Any]


@dataclass
class Verdict:
    """What is wrong, a sentence each, and how many runs ended how."""

    wrong: list[str] = field(default_factory=list)
    states: Counter[str] = field(default_factory=Counter)
    attempts: Counter[str] = field(default_factory=Counter)


async def judge(backend: Backend, accepted: Accepted, trace: Path) -> Verdict:
    """Look at everything that was recorded and stored."""
    verdict = Verdict()
    runs = [_decoded(row) for row in await backend.fetch(_RUNS)]
    attempts: dict[str, list[Row]] = defaultdict(list)
    for row in await backend.fetch(_ATTEMPTS):
        attempts[row["run_id"]].append(_decoded(row))
    verdict.states.update(run["state"] for run in runs)
    verdict.attempts.update(attempt["state"] for tries in attempts.values() for attempt in tries)
    kept = {row["key"]: row["id"] for row in await backend.fetch(_KEYS)}
    verdict.wrong += _accepted(kept, {run["id"] for run in runs}, accepted)
    for run in runs:
        verdict.wrong += _ended(run, attempts[run["id"]])
    verdict.wrong += _one_at_a_time(runs, attempts)
    verdict.wrong += _executed(runs, attempts, trace.read_text().splitlines())
    verdict.wrong += await _events(backend, runs)
    verdict.wrong += await _workflows(backend, accepted)
    verdict.wrong += await asyncio.to_thread(
        _stored,
        backend,
        runs,
        attempts,
        await backend.fetch("SELECT run_id, path, size, digest, content_type, object_key FROM runner.outputs"),
        accepted,
    )
    return verdict


async def left_over(backend: Backend) -> list[str]:
    """What the housekeeping has still to remove, or a runner to end."""
    found = []
    for table in _EMPTY:
        rows = await backend.fetch(f"SELECT count(*) AS rows FROM {table}")  # noqa: S608  # constants
        if rows[0]["rows"]:
            found.append(f"{rows[0]['rows']} rows in {table}")
    outputs = {row["object_key"] for row in await backend.fetch("SELECT object_key FROM runner.outputs")}
    logs = {row["log_key"] for row in await backend.fetch("SELECT log_key FROM runner.runs WHERE log_key IS NOT NULL")}
    for prefix, recorded in (("outputs/", outputs), ("logs/runs/", logs)):
        keys = set(await asyncio.to_thread(backend.keys, prefix))
        found += [f"{key} is in the bucket and no run's" for key in sorted(keys - recorded)]
    return found


def processes_of(scratch: Path) -> list[str]:
    """Processes that have to do with a directory: by their command, environment or working directory."""
    place, found = os.fsencode(scratch), []
    for process in Path("/proc").iterdir():
        if process.name.isdigit() and int(process.name) != os.getpid():
            try:
                seen = [(process / name).read_bytes() for name in ("cmdline", "environ")]
                seen.append(os.fsencode((process / "cwd").readlink()))
            except OSError:
                continue
            if any(place in text for text in seen):
                found.append(f"process {process.name} is still there: {seen[0].replace(bytes(1), b' ').decode()[:200]}")
    return found


def _decoded(row: asyncpg.Record) -> Row:
    values = dict(row)
    for name in ("parameters", "retry", "result", "error"):
        if isinstance(values.get(name), str):
            values[name] = json.loads(values[name])
    return values


def _accepted(kept: Mapping[str, str | None], runs: Collection[str], accepted: Accepted) -> Iterator[str]:
    """Every run that was accepted is there, and each was accepted once: for each there is a key, or workflow run."""
    for key, run_id in {**accepted.runs, **accepted.flows}.items():
        if kept.get(key) != run_id:
            yield f"{key} was accepted as {run_id}, but is {kept.get(key)}"
    for key, run_id in accepted.runs.items():
        if run_id not in runs:
            yield f"{key} was accepted as {run_id}, which is not there"


def _ended(run: Row, attempts: Sequence[Row]) -> Iterator[str]:
    """A run has one final state, came to it by attempts that its policy allows, and none of them is open."""
    name = f"run {run['id']} ({run['job']}, {run['state']})"
    if run["state"] not in _FINAL or run["finished_at"] is None:
        yield f"{name} has not ended; lease {run['lease']}, turn {run['has_turn']}"
        return
    if [attempt["number"] for attempt in attempts] != list(range(1, run["attempts"] + 1)):
        yield f"{name} counts {run['attempts']} attempts, and has {[attempt['number'] for attempt in attempts]}"
        return
    for attempt in attempts:
        if attempt["ended_at"] is None:
            yield f"attempt {attempt['number']} of {name} is still {attempt['state']}"
    policy = run["retry"]
    counted = [attempt for attempt in attempts if attempt["state"] != "handed_back"]
    if len(counted) > policy["attempts"]:
        yield f"{name} had {len(counted)} attempts, its policy allows {policy['attempts']}"
    for attempt in attempts[:-1]:
        kind = attempt["state"]
        allowed = kind in policy["on"] or (kind == "failed" and "unavailable" in policy["on"])
        if kind != "handed_back" and not allowed:
            yield f"{name} was tried again after attempt {attempt['number']}, which was {kind}: {attempt['error']}"
    if run["state"] in ("succeeded", "failed", "timed_out") and attempts[-1]["state"] != run["state"]:
        yield f"{name} ended otherwise than its last attempt, which was {attempts[-1]['state']}"
    if run["state"] == "succeeded" and run["result"] != run["attempts"]:
        yield f"{name} has the result of attempt {run['result']}, and had {run['attempts']}"
    if run["state"] == "lost" and attempts[-1]["state"] not in ("lost", "handed_back"):
        yield f"{name} has a last attempt that was {attempts[-1]['state']}"


def _one_at_a_time(runs: Sequence[Row], attempts: Mapping[str, Sequence[Row]]) -> Iterator[str]:
    """Attempts at runs with one concurrency key follow each other."""
    keyed: dict[str, list[Row]] = defaultdict(list)
    for run in runs:
        if run["concurrency_key"]:
            keyed[run["concurrency_key"]] += [attempt for attempt in attempts[run["id"]] if attempt["ended_at"]]
    for key, made in keyed.items():
        made.sort(key=lambda attempt: attempt["started_at"])
        for before, after in itertools.pairwise(made):
            if before["run_id"] != after["run_id"] and after["started_at"] < before["ended_at"]:
                yield f"runs {before['run_id']} and {after['run_id']} with the key {key} went at the same time"


def _executed(runs: Sequence[Row], attempts: Mapping[str, Sequence[Row]], trace: Sequence[str]) -> Iterator[str]:
    """No attempt called its handler twice; no handler ran again whose job forbids it, or whose success was recorded."""
    for line, count in Counter(trace).items():
        if count > 1:
            yield f"“{line}” happened {count} times"
    words: dict[str, dict[str, list[int]]] = defaultdict(lambda: defaultdict(list))
    for line in trace:
        word, run_id, number = line.split()
        words[run_id][word].append(int(number))
    for run in runs:
        begun, done = words[run["id"]]["begin"], words[run["id"]]["done"]
        if not run["retry"]["on"] and len(begun) > 1:
            yield f"run {run['id']} must not be tried again, and its handler was called in attempts {begun}"
        # In the order of the attempts: the handler of one that was lost may return after that of the next.
        for attempt_number in sorted(done)[:-1]:
            state = next(attempt["state"] for attempt in attempts[run["id"]] if attempt["number"] == attempt_number)
            if state not in ("lost", "handed_back"):
                yield f"run {run['id']} was done in attempts {done}, though attempt {attempt_number} was {state}"
        succeeded = [attempt["number"] for attempt in attempts[run["id"]] if attempt["state"] == "succeeded"]
        if begun and succeeded and max(begun) > min(succeeded):
            yield f"run {run['id']} succeeded in attempt {succeeded}, and its handler was called in attempts {begun}"


async def _events(backend: Backend, runs: Sequence[Row]) -> list[str]:
    rows = await backend.fetch("SELECT subject, action FROM audit.events")
    counts = Counter((row["subject"], row["action"]) for row in rows)
    return [
        f"run {run['id']} ({run['state']}) has {counts['run/' + run['id'], action]} events {action}"
        for run in runs
        for action in ("run.accepted", "run.finished")
        if counts["run/" + run["id"], action] != 1
    ]


async def _workflows(backend: Backend, accepted: Accepted) -> list[str]:
    rows = await backend.fetch("SELECT id, state::text AS state FROM runner.workflow_runs")
    states = {row["id"]: row["state"] for row in rows}
    wrong = [
        f"workflow run {key} was accepted, and is not there" for key in accepted.flows.values() if key not in states
    ]
    wrong += [f"workflow run {key} is still running" for key, state in states.items() if state == "running"]
    for row in await backend.fetch("SELECT workflow_run_id, name, state::text AS state FROM runner.workflow_steps"):
        if row["state"] in ("waiting", "queued", "running"):
            wrong.append(f"step {row['name']} of workflow run {row['workflow_run_id']} is still {row['state']}")
        elif states[row["workflow_run_id"]] == "succeeded" and row["state"] != "succeeded":
            wrong.append(f"workflow run {row['workflow_run_id']} succeeded, its step {row['name']} {row['state']}")
    return wrong


def _stored(
    backend: Backend,
    runs: Sequence[Row],
    attempts: Mapping[str, Sequence[Row]],
    outputs: Sequence[asyncpg.Record],
    accepted: Accepted,
) -> list[str]:
    """The bucket has what is recorded, byte for byte, and nothing half done."""
    wrong: list[str] = []
    objects = backend.objects()
    try:
        by_run: dict[str, list[asyncpg.Record]] = defaultdict(list)
        for output in outputs:
            by_run[output["run_id"]].append(output)
        logs = {}
        for run in runs:
            wrong += _outputs(objects, run, by_run[run["id"]])
            if run["log_key"] is not None:
                with objects.read(run["log_key"]) as body:
                    logs[run["id"]] = b"".join(body).decode()
                wrong += _log(run, attempts[run["id"]], logs[run["id"]])
            elif run["attempts"]:
                wrong.append(f"the log of run {run['id']} ({run['state']}) is not in the bucket")
        for follower in accepted.followers:
            if difference := list(
                difflib.unified_diff(logs.get(follower.run_id, "").splitlines(), follower.lines, "log", "followed", n=1)
            ):
                wrong.append(
                    f"who followed run {follower.run_id} ({follower.reconnected} times anew) saw another log:\n"
                    + "\n".join(difference[:20])
                )
        if pending := objects.abort_uploads(""):
            wrong.append(f"{pending} multipart uploads are pending")
    finally:
        objects.close()
    return wrong


def _outputs(objects: Any, run: Row, recorded: Sequence[asyncpg.Record]) -> Iterator[str]:
    wanted = run["parameters"].get("outputs", {}) if run["state"] == "succeeded" else {}
    if {output["path"] for output in recorded} != set(wanted):
        yield f"run {run['id']} ({run['state']}) left {[output['path'] for output in recorded]}, not {list(wanted)}"
    for output in recorded:
        path, size = output["path"], wanted.get(output["path"], 0)
        pattern = f"{run['id']} {run['attempts']} {path} ".encode()
        content = (pattern * (size // len(pattern) + 1))[:size]
        digest = f"sha256:{hashlib.sha256(content).hexdigest()}"
        with objects.read(output["object_key"]) as body:
            stored, stored_type = b"".join(body), body.content_type
        if (output["size"], output["digest"]) != (size, digest) or stored != content:
            yield f"the output {path} of run {run['id']} is not what its last attempt wrote"
        if not output["content_type"] == stored_type == content_type_of(path):
            yield f"the output {path} of run {run['id']} is {output['content_type']}, and {stored_type} in the bucket"


def _log(run: Row, attempts: Sequence[Row], text: str) -> Iterator[str]:
    """Lines of each attempt without gaps, attempts in order, times that do not go back."""
    name = f"the log of run {run['id']} ({run['state']})"
    seen: dict[int, list[int]] = defaultdict(list)
    for line in text.splitlines():
        if found := _LINE.match(line):
            seen[int(found[3])].append(int(found[2]))
    for number, lines in seen.items():
        if lines != list(range(len(lines))):
            yield f"{name} has of attempt {number} the lines {lines}"
    if list(seen) != sorted(seen):
        yield f"{name} has the attempts in the order {list(seen)}"
    times = [line.split(" ", 1)[0] for line in text.splitlines()]
    if times != sorted(times):
        yield f"{name} goes back in time"
    if run["state"] == "succeeded" and not text.endswith(" [system] succeeded\n"):
        yield f"{name} does not end with its success"
    wanted = run["parameters"].get("lines", 3)
    if run["state"] == "succeeded" and len(seen[attempts[-1]["number"]]) < wanted:
        yield f"{name} has {len(seen[attempts[-1]['number']])} of the {wanted} lines of its last attempt"
