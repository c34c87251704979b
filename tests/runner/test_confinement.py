"""What a job sees of the machine, and what it is held to."""

import json

import pytest

from libs.common.models import JobDefinition, Limits, RunRequest, RunState
from tests.registry.running import RunningRegistry
from tests.runner.bundles import node, publish, python
from tests.runner.running import RunningRunner

_ALLOWED = {
    "PATH",
    "HOME",
    "TMPDIR",
    "LANG",
    "TZ",
    "NODE_ENV",
    "STOWAGE_RUN_ID",
    "STOWAGE_RUN_ATTEMPT",
    "STOWAGE_BUNDLE",
    "STOWAGE_BUNDLE_DIGEST",
}


@pytest.mark.parametrize(
    "body",
    [
        node(
            "export const handler = () =>"
            " ({ environment: process.env, argv: process.argv.slice(1), cwd: process.cwd() })"
        ),
        python("""
            import os, sys
            def handler(context):
                return {'environment': dict(os.environ), 'argv': sys.argv, 'cwd': os.getcwd(), 'path': sys.path}
        """),
    ],
    ids=["node", "python"],
)
async def test_the_environment_holds_what_is_meant_and_nothing_of_the_service(
    registry: RunningRegistry, runner: RunningRunner, body: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STOWAGE_RUNNER_S3_SECRET_KEY", "do-not-leak")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "do-not-leak")
    monkeypatch.setenv("NODE_OPTIONS", "--trace-warnings")
    digest = await publish(registry, body)
    run = await runner.run()
    assert run.state is RunState.SUCCEEDED, run.error
    environment = run.result["environment"]
    assert set(environment) <= _ALLOWED | {"LC_CTYPE", "PWD"}
    assert set(environment) >= _ALLOWED
    assert (environment["TZ"], environment["NODE_ENV"]) == ("UTC", "production")
    assert (environment["STOWAGE_RUN_ID"], environment["STOWAGE_BUNDLE_DIGEST"]) == (run.id, digest)
    assert (environment["HOME"], environment["TMPDIR"]) == ("/job/home", "/tmp")
    assert run.result["cwd"] == "/job/bundle"
    assert run.result["argv"][0] in ("/job/bundle/main.mjs", "/job/bundle/main.py")
    assert "leak" not in json.dumps(run.result)
    assert not [place for place in run.result.get("path", []) if "site-packages" in place or "/work" in place]


async def test_no_descriptor_of_the_service_reaches_a_job(registry: RunningRegistry, runner: RunningRunner) -> None:
    await publish(
        registry,
        python("""
            import os
            def handler(context):
                found = {}
                for fd in os.listdir('/proc/self/fd'):
                    try:
                        found[fd] = os.readlink(f'/proc/self/fd/{fd}')
                    except OSError:
                        pass
                return found
        """),
    )
    run = await runner.run()
    kinds = sorted(target.split(":")[0] for target in run.result.values())
    assert kinds == ["/dev/null", *(["pipe"] * 4)], run.result


async def test_a_job_has_a_session_and_group_of_its_own(registry: RunningRegistry, runner: RunningRunner) -> None:
    code = "import os\ndef handler(context): return [os.getpid(), os.getpgid(0), os.getsid(0)]"
    await publish(registry, python(code))
    pid, group, session = (await runner.run()).result
    assert pid != group == session


_LIMITS = """
    import resource
    def handler(context):
        return {name: resource.getrlimit(getattr(resource, name))
                for name in ('RLIMIT_CORE', 'RLIMIT_FSIZE', 'RLIMIT_NOFILE', 'RLIMIT_NPROC', 'RLIMIT_DATA')}
"""


async def test_limits_come_from_settings_and_jobs_may_set_their_own(
    registry: RunningRegistry, runner: RunningRunner
) -> None:
    await publish(registry, python(_LIMITS))
    result = (await runner.run()).result
    assert result == {
        "RLIMIT_CORE": [0, 0],
        "RLIMIT_FSIZE": [8 * 2**30] * 2,
        "RLIMIT_NOFILE": [4096] * 2,
        "RLIMIT_NPROC": [512] * 2,
        "RLIMIT_DATA": [2 * 2**30] * 2,
    }
    limits = Limits(memory_bytes=256 * 2**20, processes=300, file_bytes=1000)
    await registry.client.put_job("tight", JobDefinition(bundle="hello@latest", limits=limits))
    run = await runner.client.start_run(RunRequest(job="tight"))
    result = (await runner.finished(run.id)).result
    assert (result["RLIMIT_FSIZE"], result["RLIMIT_NPROC"]) == ([1000] * 2, [300] * 2)
    assert result["RLIMIT_DATA"] == [256 * 2**20] * 2


async def test_a_node_job_that_wants_too_much_memory_crashes_alone(
    registry: RunningRegistry, runner: RunningRunner
) -> None:
    await publish(
        registry,
        node("""
            export function handler({ parameters }) {
              const kept = [];
              const more = () => (parameters.heap ? new Array(1e6).fill(kept.length) : Buffer.alloc(2 ** 24, 1));
              for (;;) kept.push(more());
            }
        """),
    )
    await registry.client.put_job(
        "greedy", JobDefinition(bundle="hello@latest", limits=Limits(memory_bytes=128 * 2**20))
    )
    for heap in (True, False):
        run = await runner.client.start_run(RunRequest(job="greedy", parameters={"heap": heap}))
        run = await runner.finished(run.id)
        assert run.state is RunState.FAILED
        assert run.error is not None
        assert run.error.type in ("crashed", "memory_exceeded", "RangeError", "no_result"), run.error


async def test_a_small_node_job_runs_within_the_least_memory(registry: RunningRegistry, runner: RunningRunner) -> None:
    await publish(registry, node("export const handler = () => 'fine'"))
    await registry.client.put_job("small", JobDefinition(bundle="hello@latest", limits=Limits(memory_bytes=64 * 2**20)))
    run = await runner.client.start_run(RunRequest(job="small"))
    assert (await runner.finished(run.id)).result == "fine"


async def test_a_python_job_that_wants_too_much_memory_fails(registry: RunningRegistry, runner: RunningRunner) -> None:
    await publish(registry, python("def handler(context): return len(bytearray(3 * 2**30))"))
    run = await runner.run()
    assert run.error is not None
    assert run.error.type == "MemoryError"


async def test_a_file_larger_than_the_limit_is_refused(registry: RunningRegistry, runner: RunningRunner) -> None:
    await registry.client.put_job("bounded", JobDefinition(bundle="hello@latest", limits=Limits(file_bytes=1000)))
    await publish(
        registry,
        python(
            "from pathlib import Path\ndef handler(context): Path(context.output_dir, 'f').write_bytes(bytes(2000))"
        ),
    )
    run = await runner.client.start_run(RunRequest(job="bounded"))
    run = await runner.finished(run.id)
    assert run.error is not None
    assert run.error.type == "OSError"
    await publish(
        registry,
        node(
            "import fs from 'node:fs';"
            "export const handler = (c) => fs.writeFileSync(c.outputDir + '/f', 'x'.repeat(2000))"
        ),
    )
    run = await runner.client.start_run(RunRequest(job="bounded"))
    run = await runner.finished(run.id)
    assert run.state is RunState.FAILED
