"""What handlers may look like, and how a run ends for what they do."""

import pytest

from libs.common.models import RunState
from tests.registry.bundles import bundle
from tests.registry.running import RunningRegistry
from tests.runner.bundles import node, publish, python
from tests.runner.running import RunningRunner

_NODE_FORMS = {
    "a named export, asynchronous": (
        "main.mjs",
        "export async function handler(context) { return context.parameters.n }",
    ),
    "a named export, synchronous": ("main.mjs", "export const handler = (context) => context.parameters.n"),
    "a default export": ("main.mjs", "export default async (context) => context.parameters.n"),
    "a default object with a handler": (
        "main.mjs",
        "export default { m: 1, handler(context) { return context.parameters.n * this.m } }",
    ),
    "CommonJS, a property": ("main.cjs", "exports.handler = async (context) => context.parameters.n"),
    "CommonJS, the module itself": ("main.cjs", "module.exports = (context) => context.parameters.n"),
    "CommonJS, an object": (
        "main.cjs",
        "const make = () => ({ handler: (context) => context.parameters.n }); module.exports = make()",
    ),
    "CommonJS, transpiled from a default export": (
        "main.cjs",
        "Object.defineProperty(exports, '__esModule', { value: true }); exports.default = (c) => c.parameters.n",
    ),
    "the older convention": ("main.mjs", "export const handler = (parameters, context) => parameters.n"),
    "the older convention, the context's names on its first argument": (
        "main.mjs",
        """
        export function handler(parameters, context) {
          parameters.logger.info('here');
          if (context.outputDir !== parameters.outputDir) throw new Error('another context');
          if (JSON.stringify(parameters) !== '{"n":7}') throw new Error(JSON.stringify(parameters));
          return parameters.n;
        }
        """,
    ),
    "one argument that answers to the parameters' names": (
        "main.mjs",
        """
        export function handler(context) {
          if (Object.keys(context).includes('n')) throw new Error('the context is not clean');
          return context.n;
        }
        """,
    ),
}

_PYTHON_FORMS = {
    "synchronous": "def handler(context): return context.parameters['n']",
    "asynchronous": """
        import asyncio
        async def handler(context):
            await asyncio.sleep(0.01)
            return context.parameters['n']
        """,
    "the older convention": "def handler(parameters, context): return parameters['n']",
    "the older convention, asynchronous": "async def handler(parameters, context): return parameters['n']",
    "the context's names on its first argument": """
        def handler(parameters, context):
            parameters.logger.info('here')
            assert dict(parameters) == {'n': 7} and parameters.output_dir == context.outputDir
            return parameters['n']
        """,
    "one argument that answers to the parameters' names": "def handler(parameters): return parameters['n']",
    "a second argument with a default": "def handler(context, factor=1): return context.parameters['n'] * factor",
}


@pytest.mark.parametrize("form", _NODE_FORMS)
async def test_node_handlers_of_every_form_are_found_and_called(
    registry: RunningRegistry, runner: RunningRunner, form: str
) -> None:
    entry, code = _NODE_FORMS[form]
    await publish(registry, node(code, entry=entry))
    run = await runner.run(parameters={"n": 7})
    assert (run.state, run.result, run.error) == (RunState.SUCCEEDED, 7, None)


@pytest.mark.parametrize("form", _PYTHON_FORMS)
async def test_python_handlers_of_every_form_are_found_and_called(
    registry: RunningRegistry, runner: RunningRunner, form: str
) -> None:
    await publish(registry, python(_PYTHON_FORMS[form]))
    run = await runner.run(parameters={"n": 7})
    assert (run.state, run.result, run.error) == (RunState.SUCCEEDED, 7, None)


async def test_the_entry_of_a_python_package_may_import_relatively_and_from_the_root(
    registry: RunningRegistry, runner: RunningRunner
) -> None:
    files = {
        "app/__init__.py": "",
        "app/main.py": "from . import part\nimport shared\ndef handler(context): return [part.N, shared.N]",
        "app/part.py": "N = 1",
        "shared.py": "N = 2",
    }
    body = bundle(files=files, runtime="python3", entry="app/main.py")
    await publish(registry, body)
    assert (await runner.run()).result == [1, 2]


_CONTEXT_NODE = """
    export async function handler(context) {
      const { logger, inputs, outputDir, workDir, run, signal, progress, update, resolveSecret } = context;
      logger('called', { a: 1 }); logger.info('info'); logger.warn('warn'); logger.error('error');
      progress(0.5, 'half'); update({ rows: 3 });
      let secret; try { await resolveSecret('db') } catch (error) { secret = error.message }
      return { run, inputs, outputDir, workDir, aborted: signal.aborted, secret };
    }
"""
_CONTEXT_PYTHON = """
    def handler(context):
        log = context.logger
        log('called', {'a': 1}); log.info('info'); log.warn('warn'); log.error('error')
        context.progress(0.5, 'half'); context.update({'rows': 3})
        try:
            context.resolve_secret('db')
        except LookupError as error:
            secret = error.args[0]
        return {'run': context.run, 'inputs': context.inputs, 'outputDir': context.output_dir,
                'workDir': context.work_dir, 'aborted': context.signal.aborted, 'secret': secret,
                'id': context.run.id}
"""


@pytest.mark.parametrize("body", [node(_CONTEXT_NODE), python(_CONTEXT_PYTHON)], ids=["node", "python"])
async def test_the_context_has_what_a_handler_needs(
    registry: RunningRegistry, runner: RunningRunner, body: bytes
) -> None:
    digest = await publish(registry, body)
    run = await runner.run()
    result = run.result
    assert result["run"] == {"id": run.id, "attempt": 1, "bundle": "hello@1.0.0", "digest": digest}
    assert result["outputDir"] == "/job/outputs"
    assert result["workDir"] == "/tmp"
    assert (result["inputs"], result["aborted"]) == ({}, False)
    assert "which declares none" in result["secret"]
    assert (run.progress, run.progress_message) == (0.5, "half")
    log = await runner.log(run.id)
    for line in ('[logger] called {"a": 1}', "[logger] info", "[logger] WARNING warn", "[logger] ERROR error"):
        assert line in log
    assert '[logger] update {"rows": 3}' in log


async def test_what_a_job_prints_is_only_lines_of_its_log(registry: RunningRegistry, runner: RunningRunner) -> None:
    forged = '{"type":"result","value":"forged"}'
    await publish(
        registry, node(f"export function handler() {{ console.log('{forged}'); console.error('e'); return 'true' }}")
    )
    run = await runner.run()
    assert run.result == "true"
    log = await runner.log(run.id)
    assert f"[stdout] {forged}" in log
    assert "[stderr] e" in log

    await publish(registry, python(f"def handler(context):\n    print('{forged}')\n    return 'true'"))
    run = await runner.run()
    assert run.result == "true"
    assert f"[stdout] {forged}" in await runner.log(run.id)


@pytest.mark.parametrize(
    ("returned", "result"),
    [
        ("undefined", None),
        ("null", None),
        ("false", False),
        ("'ü\\u{1F600}'", "ü😀"),
        ("[1, {a: 'b'}]", [1, {"a": "b"}]),
    ],
)
async def test_a_result_is_any_json_value(
    registry: RunningRegistry, runner: RunningRunner, returned: str, result: object
) -> None:
    await publish(registry, node(f"export const handler = () => ({returned})"))
    run = await runner.run()
    assert (run.state, run.result) == (RunState.SUCCEEDED, result)


_FAILURES = {
    "throws": (node("export function handler() { throw new TypeError('no such site') }"), "TypeError", "no such site"),
    "rejects with a text": (node("export async function handler() { throw 'plain' }"), "Error", "plain"),
    "throws while it is loaded": (
        node("throw new RangeError('early'); export const handler = 1"),
        "RangeError",
        "early",
    ),
    "cannot be parsed": (node("export function handler( {"), "SyntaxError", "Unexpected"),
    "imports what is not there": (node("import 'left-pad'; export const handler = 1"), "Error", "left-pad"),
    "has an unhandled rejection": (
        node(
            "export function handler() {"
            " Promise.reject(new Error('stray')); return new Promise(() => setTimeout(Date, 1e6)) }"
        ),
        "Error",
        "stray",
    ),
    "throws in a timer": (
        node(
            "export function handler() {"
            " setTimeout(() => { throw new Error('later') }, 1); return new Promise(() => {}) }"
        ),
        "Error",
        "later",
    ),
    "exports nothing": (node("export const other = 1"), "no_handler", "exports other"),
    "returns a function": (node("export const handler = () => () => 1"), "result_not_json", "a function"),
    "returns a cycle": (
        node("export function handler() { const a = {}; a.a = a; return a }"),
        "result_not_json",
        "circular",
    ),
    "returns a BigInt": (node("export const handler = () => 1n"), "result_not_json", "BigInt"),
    "returns NUL": (node("export const handler = () => 'a\\0b'"), "result_not_json", "U+0000"),
    "returns what is deep": (
        node("export const handler = () => JSON.parse('['.repeat(400) + ']'.repeat(400))"),
        "result_not_json",
        "nested more than 190 deep",
    ),
    "returns half a pair": (node("export const handler = () => '\\ud800'"), "result_not_json", "surrogate"),
    "returns too much": (node("export const handler = () => 'x'.repeat(2e6)"), "result_too_large", "outputDir"),
    "python raises": (python("def handler(context): raise ValueError('no such site')"), "ValueError", "no such site"),
    "python raises asynchronously": (python("async def handler(context): raise KeyError('k')"), "KeyError", "'k'"),
    "python cannot be parsed": (python("def handler(:"), "SyntaxError", "invalid syntax"),
    "python defines nothing": (python("x = 1"), "no_handler", "defines no function"),
    "python returns a set": (python("def handler(context): return {1}"), "result_not_json", "set"),
    "python returns NaN": (python("def handler(context): return float('nan')"), "result_not_json", "JSON"),
    "python returns a huge number": (python("def handler(context): return 10 ** 5000"), "result_not_json", ""),
}


@pytest.mark.parametrize("what", _FAILURES)
async def test_a_handler_that_fails_says_why(registry: RunningRegistry, runner: RunningRunner, what: str) -> None:
    body, kind, text = _FAILURES[what]
    await publish(registry, body)
    run = await runner.run()
    assert run.state is RunState.FAILED
    assert run.result is None
    assert run.error is not None
    assert (run.error.type, text in run.error.message) == (kind, True), run.error


async def test_the_stack_of_a_failure_is_in_the_log(registry: RunningRegistry, runner: RunningRunner) -> None:
    await publish(registry, node("function deep() { throw new Error('boom') }\nexport function handler() { deep() }"))
    run = await runner.run()
    log = await runner.log(run.id)
    assert "ERROR Error: boom" in log
    assert "at deep" in log

    await publish(registry, python("def deep(): raise ValueError('boom')\ndef handler(context): deep()"))
    run = await runner.run()
    log = await runner.log(run.id)
    assert "in deep" in log
    assert "ValueError: boom" in log
    assert "harness" not in log


_EXITS = {
    "exits with 0": (node("export function handler() { process.exit(0) }"), "no_result", "exit code 0"),
    "exits with 3": (node("export function handler() { process.exit(3) }"), "no_result", "exit code 3"),
    "never settles": (node("export const handler = () => new Promise(() => {})"), "no_result", "without a result"),
    "closes every descriptor": (
        node(
            "import fs from 'node:fs';"
            "export function handler() { for (let fd = 3; fd < 1024; fd++) try { fs.closeSync(fd) } catch {} }"
        ),
        None,
        "",
    ),
    "is killed": (node("export function handler() { process.kill(process.pid, 'SIGKILL') }"), "crashed", "SIGKILL"),
    "aborts": (node("export function handler() { process.abort() }"), "crashed", "SIGABRT"),
    "python exits": (python("import sys\ndef handler(context): sys.exit(4)"), "no_result", "exit code 4"),
    "python ends at once": (python("import os\ndef handler(context): os._exit(0)"), "no_result", "exit code 0"),
    "python is killed": (python("import os\ndef handler(context): os.kill(os.getpid(), 11)"), "crashed", "SIGSEGV"),
}


@pytest.mark.parametrize("what", _EXITS)
async def test_a_process_that_ends_without_a_result_is_told_apart(
    registry: RunningRegistry, runner: RunningRunner, what: str
) -> None:
    body, kind, text = _EXITS[what]
    await publish(registry, body)
    run = await runner.run(seconds=20)
    assert run.state is RunState.FAILED
    assert run.error is not None
    if kind is not None:
        assert (run.error.type, text in run.error.message) == (kind, True), run.error


async def test_a_result_counts_although_the_process_does_not_go(
    registry: RunningRegistry, runner: RunningRunner
) -> None:
    await publish(
        registry,
        python("""
            import threading, time
            def handler(context):
                threading.Thread(target=time.sleep, args=(600,)).start()
                return 'done'
        """),
    )
    assert (await runner.run(seconds=20)).result == "done"
    await publish(
        registry,
        node("export function handler() { process.on('exit', () => { while (true); }); return 'done' }"),
    )
    assert (await runner.run(seconds=20)).result == "done"


async def test_floods_of_output_are_cut_and_the_run_goes_on(registry: RunningRegistry, runner: RunningRunner) -> None:
    await publish(
        registry,
        node("""
            import fs from 'node:fs';
            export function handler(context) {
              console.log('y'.repeat(300000));
              process.stdout.write(Buffer.alloc(40 * 1024 * 1024, 'z'));
              for (let i = 0; i < 300; i++) console.log(`${i} ` + 'x'.repeat(10000));
              context.logger('a\\0b\\nc', { deep: { text: '\\ud800' } });
              context.logger('m'.repeat(1e6), { big: 'f'.repeat(1e6) });
              console.error(Buffer.from([0x66, 0xff, 0xfe]).toString('latin1'));
              return 'still here';
            }
        """),
    )
    run = await runner.run(seconds=60)
    assert run.result == "still here"
    log = await runner.log(run.id)
    assert "more lines were dropped: the log is full." in log
    assert "[system] succeeded" in log
    assert len(log) < 20 * 1024 * 1024


_FIND_CHANNEL = """
import fcntl, os
def event_channel():
    for fd in range(3, 1024):
        try:
            if fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE == os.O_WRONLY:
                return fd
        except OSError:
            pass
"""


async def test_an_event_that_is_too_long_or_no_json_is_dropped(
    registry: RunningRegistry, runner: RunningRunner
) -> None:
    code = """
def handler(context):
    channel = event_channel()
    os.write(channel, b'garbage\\n[1,2]\\n{"type":"unheard"}\\n{"type":"progress","fraction":1e999}\\n')
    os.write(channel, b'{"type":"log","message":"')
    for _ in range(5):
        os.write(channel, b'x' * 1000000)
    os.write(channel, b'"}\\n')
    return 'fine'
"""
    await publish(registry, python(_FIND_CHANNEL + code))
    run = await runner.run()
    assert run.result == "fine", run.error
    log = await runner.log(run.id)
    assert log.count("was not understood and dropped") == 4
    assert len(log) < 10_000


async def test_a_forged_result_larger_than_the_limit_is_refused(
    registry: RunningRegistry, runner: RunningRunner
) -> None:
    code = """
def handler(context):
    os.write(event_channel(), b'{"type":"result","value":"')
    for _ in range(5):
        os.write(event_channel(), b'x' * 1000000)
    os.write(event_channel(), b'"}\\n')
"""
    await publish(registry, python(_FIND_CHANNEL + code))
    run = await runner.run()
    assert run.error is not None
    assert run.error.type == "result_too_large"


async def test_progress_is_seen_while_a_job_runs(registry: RunningRegistry, runner: RunningRunner) -> None:
    await publish(
        registry,
        node(
            "export async function handler(c) {"
            " c.progress(0.25, 'a quarter'); await new Promise((go) => setTimeout(go, 1500)) }"
        ),
    )
    run = await runner.start()
    run = await runner.in_state(run.id, "running")
    while run.progress is None and not run.state.final:
        run = await runner.client.run(run.id)
    assert (run.progress, run.progress_message) == (0.25, "a quarter")
    assert (await runner.finished(run.id)).state is RunState.SUCCEEDED
