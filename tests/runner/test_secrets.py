"""Secrets: given to the jobs that declare them, and shown by nothing that the runner keeps or says."""

import base64
import hashlib
import json
from pathlib import Path

import pytest

from libs.common.models import JobDefinition, Run, RunRequest, RunState
from tests.backend import Backend
from tests.registry.running import RunningRegistry, running_registry
from tests.runner.bundles import node, publish, python
from tests.runner.running import RunningRunner, runner_process, running_runner

_KEY = "Zq7\"\\'/+=& é-5f0c9b1e7ad24836b1c0"
_CERTIFICATE = "-----BEGIN-----\nMIIB8d7f3a90c1e2\nAQ2c4e6a8b0d1f3e5\n-----END-----"
_WINDOW = 8

_NODE = """
    import crypto from 'node:crypto';
    import fs from 'node:fs';
    export async function handler(context) {
      const key = await context.resolveSecret('api-key');
      const certificate = context.resolveSecret('certificate');
      const around = [process.env, process.argv, fs.readFileSync('/proc/self/environ', 'utf8'),
                      fs.readFileSync('/proc/self/cmdline', 'utf8')];
      const leaked = [key, certificate, '5f0c9b1e'].some((text) => JSON.stringify(around).includes(text));
      console.log(key);
      console.error(`token=${key};`);
      console.log({ nested: { key, certificate } });
      console.log(JSON.stringify({ key, certificate }));
      console.log(certificate);
      console.log(encodeURIComponent(key), new URLSearchParams({ key }).toString());
      console.log('Basic ' + Buffer.from('user:' + key).toString('base64'));
      console.log(Buffer.from(certificate).toString('base64url'));
      console.log('x'.repeat(16 * 1024 - 25) + key + 'y'.repeat(100));
      context.logger.warn('with ' + key, { field: key, [key]: [certificate] });
      context.logger.info('z'.repeat(64 * 1024 - 25) + key);
      context.update({ key });
      context.progress(0.5, 'at ' + key);
      if (context.parameters.fail) throw new Error('no access with ' + key);
      const digest = (text) => crypto.createHash('sha256').update(text).digest('hex');
      return { leaked, digests: [digest(key), digest(certificate)], said: `it is ${key}.`, list: [{ [key]: [key] }] };
    }
"""
_PYTHON = """
    import asyncio, base64, hashlib, json, os, sys, urllib.parse
    async def handler(context):
        key = await context.resolveSecret('api-key')
        certificate = context.resolve_secret('certificate')
        around = json.dumps([dict(os.environ), sys.argv, open('/proc/self/environ').read(),
                             open('/proc/self/cmdline').read()], ensure_ascii=False)
        leaked = any(text in around for text in (key, certificate, '5f0c9b1e'))
        print(key)
        print(f'token={key};', file=sys.stderr)
        print({'nested': {'key': str(key), 'certificate': str(certificate)}})
        print(json.dumps({'key': key, 'certificate': certificate}))
        print(certificate)
        print(urllib.parse.quote(key), urllib.parse.quote_plus(key))
        print('Basic ' + base64.b64encode(f'user:{key}'.encode()).decode())
        print(base64.urlsafe_b64encode(certificate.encode()).decode())
        print('x' * (16 * 1024 - 25) + key + 'y' * 100)
        context.logger.warn('with ' + key, {'field': key, str(key): [certificate]})
        context.logger.info('z' * (64 * 1024 - 25) + key)
        context.update({'key': key})
        context.progress(0.5, 'at ' + key)
        if context.parameters.get('fail'):
            raise PermissionError('no access with ' + key)
        digest = lambda text: hashlib.sha256(text.encode()).hexdigest()
        return {'leaked': leaked, 'digests': [digest(key), digest(certificate)], 'said': f'it is {key}.',
                'list': [{key: [key]}]}
"""
_BODIES = {"node": node(_NODE, slug="open"), "python": python(_PYTHON, slug="open")}


def _keep(directory: Path, **values: str) -> Path:
    directory.mkdir(exist_ok=True)
    for name, value in values.items():
        (directory / name.replace("_", "-")).write_text(value)
    return directory


async def _run_job(runner: RunningRunner, job: str, **parameters: object) -> Run:
    started = await runner.client.start_run(RunRequest(job=job, parameters=parameters))
    return await runner.finished(started.id)


def _require_hidden(text: str) -> None:
    """Fail if a part of a secret, or of its encodings, is in `text`."""
    basic = base64.b64encode(f"user:{_KEY}".encode()).decode()[10:-4]
    certificate = base64.urlsafe_b64encode(_CERTIFICATE.encode()).decode()[:-4]
    parts = [_KEY[14:], *_CERTIFICATE.split("\n"), basic, certificate, _KEY.encode().hex()]
    for part in parts:
        for start in range(len(part) - _WINDOW + 1):
            window = part[start : start + _WINDOW]
            at = text.find(window)
            assert at < 0, f"{window} is in …{text[max(0, at - 80) : at + 80]}…"


async def _all_rows(backend: Backend) -> str:
    tables = await backend.fetch(
        "SELECT format('%I.%I', schemaname, tablename) AS name FROM pg_tables "
        "WHERE schemaname NOT IN ('pg_catalog', 'information_schema')"
    )
    assert len(tables) > 10
    rows = [await backend.fetch(f"SELECT t::text AS text FROM {table['name']} AS t") for table in tables]  # noqa: S608
    return "\n".join(row["text"] for found in rows for row in found)


def _all_objects(backend: Backend) -> str:
    objects = backend.objects()
    try:
        return "\n".join(
            key + b"".join(objects.read(key)).decode("utf-8", "replace")
            for key in objects.list("")
            if not key.startswith("artifacts/")
        )
    finally:
        objects.close()


@pytest.mark.parametrize("language", _BODIES)
async def test_declared_secrets_reach_the_job_and_nothing_else(backend: Backend, tmp_path: Path, language: str) -> None:
    kept = _keep(tmp_path / "secrets", api_key=_KEY + "\n", certificate=_CERTIFICATE)
    digests = [hashlib.sha256(value.encode()).hexdigest() for value in (_KEY, _CERTIFICATE)]
    async with running_registry(backend) as registry:
        await publish(registry, _BODIES[language], "open")
        definition = JobDefinition(bundle="open@latest", secrets=["api-key", "certificate"])
        await registry.client.put_job("open", definition)
        async with runner_process(backend, registry, tmp_path / "scratch", secrets_dir=kept) as runner:
            done = await _run_job(runner, "open")
            failed = await _run_job(runner, "open", fail=True)
            said = [
                (await runner.request("GET", path)).body.decode()
                for run in (done, failed)
                for path in (f"/runs/{run.id}", f"/runs/{run.id}/log")
            ]
    assert (done.state, failed.state) == (RunState.SUCCEEDED, RunState.FAILED), done.error
    assert done.result == {
        "leaked": False,
        "digests": digests,
        "said": "it is ***.",
        "list": [{"***": ["***"]}],
    }
    assert failed.error is not None
    assert failed.error.message == "no access with ***"
    assert "token=***;" in said[1]
    assert "Basic ***" not in said[1]
    assert "Basic " in said[1]
    for text in said:
        _require_hidden(text)
    _require_hidden(await _all_rows(backend))
    _require_hidden(_all_objects(backend))
    (log,) = tmp_path.glob("scratch-*.log")
    assert "run_finished" in log.read_text()
    _require_hidden(log.read_text())


_ASKS = {
    "node": node("export const handler = (c) => c.resolveSecret(c.parameters.name)", slug="asks"),
    "python": python("def handler(c): return c.resolve_secret(c.parameters['name'])", slug="asks"),
}


@pytest.mark.parametrize("language", _ASKS)
async def test_a_secret_that_is_not_declared_is_refused_with_a_sentence(
    runner: RunningRunner, registry: RunningRegistry, monkeypatch: pytest.MonkeyPatch, language: str
) -> None:
    monkeypatch.setenv("STOWAGE_SECRET_DECLARED", "declared-value")
    monkeypatch.setenv("STOWAGE_SECRET_OTHER", "other-value")
    await publish(registry, _ASKS[language], "asks")
    await registry.client.put_job("asks", JobDefinition(bundle="asks@latest", secrets=["declared"]))
    assert (await _run_job(runner, "asks", name="declared")).result == "***"
    for name in ("other", "constructor", "__proto__"):
        run = await _run_job(runner, "asks", name=name)
        assert run.error is not None
        assert run.error.message == (
            f"secret “{name}” is not declared: add its name to “secrets” in the definition of the job, which declares "
            "declared. A run of a bundle without a job has none."
        )
    run = await runner.run("asks@latest", parameters={"name": "declared"})
    assert run.error is not None
    assert "which declares none" in run.error.message


async def test_a_run_whose_secret_does_not_exist_fails_before_its_handler(
    runner: RunningRunner, registry: RunningRegistry
) -> None:
    await publish(registry, _ASKS["node"], "asks")
    await registry.client.put_job("wants", JobDefinition(bundle="asks@latest", secrets=["db.pass-word"]))
    run = await _run_job(runner, "wants", name="other")
    assert run.state is RunState.FAILED
    assert run.error is not None
    assert run.error.type == "secret_missing"
    assert run.error.message == (
        "The secret “db.pass-word”, which the job declares, does not exist: it was looked for in the runner's "
        "environment variable STOWAGE_SECRET_DB_PASS_WORD. Provide it there, or take its name out of the job's "
        "“secrets”."
    )
    assert run.timings.handler_ms is None


async def test_a_changed_file_counts_for_the_next_run_and_files_go_before_variables(
    backend: Backend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = """
        import hashlib
        def handler(context): return hashlib.sha256(context.resolve_secret('turned').encode()).hexdigest()
    """
    monkeypatch.setenv("STOWAGE_SECRET_TURNED", "from the environment")
    kept = _keep(tmp_path / "secrets")
    async with running_registry(backend) as registry:
        await publish(registry, python(code, slug="turning"), "turning")
        await registry.client.put_job("turning", JobDefinition(bundle="turning@latest", secrets=["turned"]))
        async with running_runner(backend, registry, tmp_path / "scratch", secrets_dir=kept) as runner:
            found = [(await _run_job(runner, "turning")).result]
            for value in ("first", "second"):
                _keep(kept, turned=value)
                found.append((await _run_job(runner, "turning")).result)
    expected = ["from the environment", "first", "second"]
    assert found == [hashlib.sha256(value.encode()).hexdigest() for value in expected]


async def test_steps_of_a_workflow_have_the_secrets_of_their_jobs(
    runner: RunningRunner, registry: RunningRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STOWAGE_SECRET_STEP", "value-of-the-step")
    await publish(registry, _ASKS["python"], "asks")
    await registry.client.put_job("asks", JobDefinition(bundle="asks@latest", secrets=["step", "step"]))
    steps = [{"name": "only", "job": "asks", "parameters": {"name": "step"}}]
    assert (await registry.request("PUT", "/workflows/secretive", json={"steps": steps})).status == 201
    started = await runner.client.start_workflow("secretive", {})
    done = await runner.workflow_finished(started.id)
    assert [step.result for step in done.steps] == ["***"]
    (row,) = await runner.backend.fetch("SELECT secrets FROM runner.runs WHERE workflow_run_id = $1", started.id)
    assert row["secrets"] == ["step"]
    assert "value-of-the-step" not in json.dumps(done.model_dump(mode="json"))
