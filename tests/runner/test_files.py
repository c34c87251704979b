"""Outputs, inputs made of other runs' outputs, and logs."""

import asyncio
from pathlib import Path

import pytest

from libs.common.client import RunnerClient
from libs.common.models import InputSource, RunState
from libs.common.objects import output_key, run_log_prefix
from tests.registry.running import RunningRegistry
from tests.runner.bundles import node, publish, python
from tests.runner.running import RunningRunner

_WRITER = python("""
    import os
    from pathlib import Path
    def handler(context):
        out = Path(context.output_dir)
        for name, content in context.parameters['files'].items():
            path = out / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content)
        return sorted(context.parameters['files'])
""")
_READER = python("""
    from pathlib import Path
    def handler(context):
        found = {}
        for name, place in context.inputs.items():
            path = Path(place)
            assert path.is_absolute()
            files = [path] if path.is_file() else sorted(item for item in path.rglob('*') if item.is_file())
            found[name] = {str(item.relative_to(path)): item.read_text() for item in files}
        return found
""")


async def _written(registry: RunningRegistry, runner: RunningRunner, files: dict[str, str]) -> str:
    await publish(registry, _WRITER, "hello")
    run = await runner.run(parameters={"files": files})
    assert run.state is RunState.SUCCEEDED, run.error
    return run.id


async def test_outputs_are_kept_listed_and_read(registry: RunningRegistry, runner: RunningRunner) -> None:
    files = {
        "plots/temperatur ü #1?.svg": "<svg/>",
        "report.html": "<p>",
        "data.csv": "a,b",
        "x.bin": "",
        "n/ö%.json": "{}",
    }
    run_id = await _written(registry, runner, files)
    outputs = await runner.client.outputs(run_id)
    assert [output.path for output in outputs] == sorted(files, key=str.encode)
    for output in outputs:
        assert await runner.client.output(run_id, output.path) == files[output.path].encode()
    assert sorted(runner.backend.keys(f"outputs/{run_id}/")) == sorted(output_key(run_id, 1, path) for path in files)
    types = {output.path: output.content_type for output in outputs}
    assert types["report.html"] == "text/html"
    assert types["data.csv"] == "text/csv"
    assert types["x.bin"] == "application/octet-stream"


async def test_outputs_come_in_pages(registry: RunningRegistry, runner: RunningRunner) -> None:
    names = [f"{number:03}.txt" for number in range(25)]
    run_id = await _written(registry, runner, dict.fromkeys(names, "x"))
    found: list[str] = []
    cursor = ""
    while True:
        page = (await runner.request("GET", f"/runs/{run_id}/outputs?limit=10{cursor}")).json
        found += [item["path"] for item in page["items"]]
        if page["next"] is None:
            break
        cursor = f"&cursor={page['next']}"
    assert found == names


async def test_an_output_is_served_so_that_it_does_no_harm(registry: RunningRegistry, runner: RunningRunner) -> None:
    run_id = await _written(registry, runner, {"report.html": "<script>alert(1)</script>", "ü.csv": "a"})
    answer = await runner.request("GET", f"/runs/{run_id}/outputs/report.html")
    assert answer.status == 200
    assert answer.headers["Content-Type"] == "text/html; charset=utf-8"
    assert answer.headers["Content-Security-Policy"] == "sandbox"
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert answer.headers["Content-Disposition"] == "inline; filename*=UTF-8''report.html"
    cached = await runner.request(
        "GET", f"/runs/{run_id}/outputs/report.html", headers={"If-None-Match": answer.headers["ETag"]}
    )
    assert (cached.status, cached.body) == (304, b"")
    answer = await runner.request("GET", f"/runs/{run_id}/outputs/%C3%BC.csv")
    assert (answer.body, answer.headers["Content-Disposition"]) == (b"a", "inline; filename*=UTF-8''%C3%BC.csv")
    for path in ("nothing", "../report.html", "report.html/"):
        assert (await runner.request("GET", f"/runs/{run_id}/outputs/{path}")).status == 404
    assert (await runner.request("GET", "/runs/run_none/outputs/a")).status == 404
    assert (await runner.request("GET", "/runs/run_none/outputs")).status == 404


async def test_an_output_that_was_damaged_in_the_bucket_is_never_served_whole(
    registry: RunningRegistry, runner: RunningRunner
) -> None:
    run_id = await _written(registry, runner, {"a.txt": "right"})
    registry.objects.put(output_key(run_id, 1, "a.txt"), b"wrong", content_type="text/plain")
    with pytest.raises(Exception, match=r"payload|closed|reached"):
        await runner.client.output(run_id, "a.txt")
    registry.objects.delete(output_key(run_id, 1, "a.txt"))
    answer = await runner.request("GET", f"/runs/{run_id}/outputs/a.txt")
    assert (answer.status, "gone from the bucket" in answer.json["detail"]) == (404, True)


async def test_only_regular_files_are_outputs(registry: RunningRegistry, runner: RunningRunner, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("secret")
    code = f"""
        import os
        def handler(context):
            out = context.output_dir
            os.symlink({str(secret)!r}, out + '/link')
            os.symlink({str(tmp_path)!r}, out + '/directory')
            os.mkfifo(out + '/pipe')
            os.mkdir(out + '/empty')
            open(out + '/real', 'w').close()
            os.chmod(out + '/empty', 0)
            return 1
    """
    await publish(registry, python(code))
    run = await runner.run()
    assert [output.path for output in await runner.client.outputs(run.id)] == ["real"]
    log = await runner.log(run.id)
    assert "3 outputs were left out, since they are no regular files: directory, link, pipe" in log


async def test_large_outputs_go_up_in_parts_and_come_down_whole(
    registry: RunningRegistry, runner: RunningRunner
) -> None:
    code = """
        import hashlib
        def handler(context):
            digest = hashlib.sha256()
            with open(context.output_dir + '/big', 'wb') as file:
                for number in range(21):
                    block = bytes([number]) * 1048576
                    digest.update(block)
                    file.write(block)
            return digest.hexdigest()
    """
    await publish(registry, python(code))
    run = await runner.run()
    (output,) = await runner.client.outputs(run.id)
    assert (output.size, output.digest) == (21 * 2**20, f"sha256:{run.result}")
    assert len(await runner.client.output(run.id, "big")) == 21 * 2**20


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        ("open(context.output_dir + '/a\\\\nb', 'w').close()", "output_name"),
        ("open(context.output_dir.encode() + b'/\\\\xff', 'w').close()", "output_name"),
        (
            "os.makedirs(context.output_dir + '/d' * 500); open(context.output_dir + '/d' * 500 + '/f', 'w').close()",
            "output_name",
        ),
        ("[open(f'{context.output_dir}/{n}', 'w').close() for n in range(10_001)]", "outputs_too_many"),
    ],
)
async def test_outputs_that_cannot_be_kept_fail_the_run(
    registry: RunningRegistry, runner: RunningRunner, code: str, kind: str
) -> None:
    source = f"import os\ndef handler(context):\n    {code}".replace("\\\\", "\\")
    await publish(registry, python(source))
    run = await runner.run()
    assert run.error is not None
    assert (run.state, run.error.type) == (RunState.FAILED, kind), run.error
    assert await runner.client.outputs(run.id) == []


async def test_a_failed_run_has_no_outputs(registry: RunningRegistry, runner: RunningRunner) -> None:
    code = "def handler(context):\n    open(context.output_dir + '/a', 'w').close()\n    raise ValueError"
    await publish(registry, python(code))
    run = await runner.run()
    assert await runner.client.outputs(run.id) == []
    assert runner.backend.keys(f"outputs/{run.id}/") == []


async def test_inputs_are_files_or_directories_of_other_runs(registry: RunningRegistry, runner: RunningRunner) -> None:
    source = await _written(registry, runner, {"a.txt": "A", "d/b.txt": "B", "d/e/c.txt": "C", "dd.txt": "D"})
    await publish(registry, _READER)
    inputs = {
        "one": InputSource(run=source, path="a.txt"),
        "many": InputSource(run=source, path="d/"),
        "all": InputSource(run=source, path="/"),
        "none": InputSource(run=source, path="nothing.txt", optional=True),
        "nowhere": InputSource(run="run_none", path="x/", optional=True),
    }
    run = await runner.run(inputs=inputs)
    assert run.result == {
        "one": {".": "A"},
        "many": {"b.txt": "B", "e/c.txt": "C"},
        "all": {"a.txt": "A", "d/b.txt": "B", "d/e/c.txt": "C", "dd.txt": "D"},
    }
    assert run.inputs["one"].path == "a.txt"


async def test_an_input_that_is_missing_or_damaged_fails_the_run(
    registry: RunningRegistry, runner: RunningRunner
) -> None:
    source = await _written(registry, runner, {"a.txt": "A", "b.txt": "B"})
    await publish(registry, _READER)
    for run_id, path in ((source, "c.txt"), (source, "c/"), ("run_none", "a.txt")):
        run = await runner.run(inputs={"x": InputSource(run=run_id, path=path)})
        assert run.error is not None
        assert run.error.type == "input_missing"
        assert run.error.message.startswith(f"input x is missing: run {run_id} has no output {path}.")
    registry.objects.put(output_key(source, 1, "a.txt"), b"Z", content_type="text/plain")
    run = await runner.run(inputs={"x": InputSource(run=source, path="a.txt")})
    assert run.error is not None
    assert run.error.type == "integrity"
    registry.objects.delete(output_key(source, 1, "b.txt"))
    run = await runner.run(inputs={"x": InputSource(run=source, path="b.txt")})
    assert run.error is not None
    assert (run.error.type, "has lost the output" in run.error.message) == ("input_missing", True)


async def test_a_log_is_followed_line_by_line_until_the_run_ends(
    registry: RunningRegistry, runner: RunningRunner
) -> None:
    await publish(
        registry,
        node("""
            export async function handler() {
              for (let i = 0; i < 5; i++) {
                console.log(`tick ${i}`);
                await new Promise((go) => setTimeout(go, 300));
              }
            }
        """),
    )
    run = await runner.start()
    times: list[float] = []
    lines: list[str] = []
    async for line in runner.client.lines(f"/runs/{run.id}/log", follow="true"):
        lines.append(line)
        times.append(asyncio.get_running_loop().time())
    ticks = [number for number, line in enumerate(lines) if "tick" in line]
    assert [lines[number].rpartition(" ")[2] for number in ticks] == ["0", "1", "2", "3", "4"]
    assert times[ticks[4]] - times[ticks[0]] > 0.8
    assert lines[-1].endswith("[system] succeeded")
    assert "\n".join(lines) + "\n" == await runner.log(run.id)


async def test_following_can_begin_behind_a_line_before_and_after_the_end(
    registry: RunningRegistry, runner: RunningRunner
) -> None:
    await publish(registry, node("export function handler(c) { c.logger('a\\nb\\nc'); console.log('d') ; return 1 }"))
    run = await runner.run()
    whole = await runner.log(run.id)
    lines = whole.splitlines(keepends=True)
    for after in range(len(lines) + 2):
        answer = await runner.request("GET", f"/runs/{run.id}/log?follow=true&after={after}")
        assert answer.body.decode() == "".join(lines[after:])


async def test_a_log_ends_as_one_object_and_leaves_the_database(
    registry: RunningRegistry, runner: RunningRunner
) -> None:
    await publish(registry, node("export function handler() { console.log('x') }"))
    run = await runner.run()
    rows = await runner.backend.fetch("SELECT count(*) AS n FROM runner.journal WHERE stream = $1", run.id)
    assert rows[0]["n"] == 0
    (key,) = runner.backend.keys(run_log_prefix(run.id))
    with registry.objects.read(key) as body:
        assert b"[stdout] x\n" in b"".join(body)
    registry.objects.delete(key)
    answer = await runner.request("GET", f"/runs/{run.id}/log")
    assert (answer.status, answer.json["type"]) == (404, "urn:stowage:problem:log-missing")


async def test_many_follow_one_log(registry: RunningRegistry, runner: RunningRunner) -> None:
    await publish(
        registry,
        node("""
            export async function handler() {
              for (let i = 0; i < 2000; i++) {
                console.log(i);
                if (i % 100 === 0) await new Promise((go) => setTimeout(go, 5));
              }
            }
        """),
    )
    run = await runner.start()

    async def follow(client: RunnerClient) -> list[str]:
        return [line async for line in client.lines(f"/runs/{run.id}/log", follow="true")]

    found = await asyncio.gather(*(follow(runner.client) for _ in range(8)))
    assert all(lines == found[0] for lines in found)
    assert len(found[0]) == 2003


async def test_what_s3_began_to_take_and_nobody_completes_is_ended_with_the_upload(
    registry: RunningRegistry, runner: RunningRunner
) -> None:
    code = """
        import time
        def handler(context):
            context.logger('at work')
            time.sleep(1)
            with open(f'{context.output_dir}/large', 'wb') as file:
                file.truncate(9 * 2**20)
    """
    await publish(registry, python(code))
    run = await runner.start()
    await runner.logged(run.id, "at work")
    broken = registry.objects.upload(output_key(run.id, 1, "large"), content_type="text/plain")
    broken.write(bytes(9 * 2**20))
    assert (await runner.finished(run.id)).state is RunState.SUCCEEDED
    assert registry.objects.abort_uploads("outputs/") == 0
    assert len(await runner.client.output(run.id, "large")) == 9 * 2**20
