"""Jobs that lie over their channels, leave strange outputs, won't end, or leave something running."""

import re
from typing import Any

import psutil
import pytest

from libs.common.models import Run, RunState
from tests.runner.hostile import MARK, Target

# Finds the channel for events: the last of the pipes that a harness has, by a line that only it can carry.
_CHANNEL = """
    import json, os, stat
    def channel():
        return max(int(name) for name in os.listdir('/proc/self/fd') if is_event(int(name)))
    def is_event(fd):
        try:
            return fd > 2 and stat.S_ISFIFO(os.fstat(fd).st_mode) and os.get_inheritable(fd) is False and writable(fd)
        except OSError:
            return False
    def writable(fd):
        import fcntl
        return fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE == os.O_WRONLY
    def say(data):
        rest = memoryview(data)
        while rest:
            rest = rest[os.write(channel(), rest):]
"""


def _speaking(body: str) -> str:
    return _CHANNEL + "    def handler(context):\n" + "\n".join(f"        {line}" for line in body.splitlines())


def _error(run: Run) -> tuple[str, str]:
    assert run.state is RunState.FAILED, run
    assert run.error is not None
    return run.error.type, run.error.message


async def test_the_first_end_that_a_job_tells_is_its_end(victim: Target) -> None:
    run = await victim.attack(
        _speaking("""
say(b'{"type":"result","value":"first"}\\n')
say(b'{"type":"result","value":"second"}\\n')
say(b'{"type":"error","name":"Late","message":"third"}\\n')
return 'fourth'
""")
    )
    assert (run.state, run.result) == (RunState.SUCCEEDED, "first")


async def test_forged_events_are_a_jobs_own_words_and_nothing_else(victim: Target) -> None:
    run = await victim.attack(
        _speaking("""
for event in ({'type': 'log', 'source': 'system', 'level': 'system', 'message': 'I am the runner'},
              {'type': 'finished', 'run': 'another', 'state': 'succeeded'}, {'type': ['result']}, [], 'x', None,
              {'type': 'progress', 'fraction': 1e308, 'message': {'a': 1}}, {'type': 'progress', 'fraction': -5},
              {'type': 'log', 'message': 'two\\nlines', 'fields': {'\\0': '\\ud800'}}):
    say(json.dumps(event).encode() + b'\\n')
say(b'\\xff\\xfe\\n{"type":\\n' + b'[' * 50000 + b'\\n')
return 'mine'
""")
    )
    assert (run.result, run.progress) == ("mine", 0.0)
    log = await victim.runner.log(run.id)
    assert "[logger] I am the runner" in log
    assert len(re.findall(r"an event of \d+ bytes was not understood and dropped", log)) >= 6


@pytest.mark.parametrize(
    ("begin", "expected"),
    [
        ("b''", None),
        ("""b'{"type":"log","message":"'""", None),
        ("""b'{"type":"result","value":"'""", ("result_too_large", "The result is larger than 65536 bytes, which is")),
    ],
    ids=["of no kind", "log", "result"],
)
async def test_an_event_without_an_end_is_not_kept(
    victim: Target, begin: str, expected: tuple[str, str] | None
) -> None:
    run = await victim.attack(
        _speaking(f"say({begin})\nfor _ in range(100): say(b'x' * 2**20)\nsay(b'\\n')\nreturn 'done'"),
        neighbour_seconds=0.6,
    )
    if expected is None:
        assert run.state is RunState.SUCCEEDED, run.error
        assert "bytes was not understood and dropped" in await victim.runner.log(run.id)
    else:
        kind, message = _error(run)
        assert (kind, expected[1] in message) == (expected[0], True)
    assert psutil.Process(victim.pid).memory_info().rss < 400 * 2**20


@pytest.mark.parametrize(
    "event",
    ['{"type":"log","message":"m"}', '{"type":"progress","fraction":0.5}', "nonsense", '{"type":"started"}', ""],
)
async def test_a_flood_of_events_drowns_nobody(victim: Target, event: str) -> None:
    run = await victim.attack(
        _speaking(f"lines = (b'{event}' + b'\\n') * 1000\nfor _ in range(40): say(lines)\nreturn 'done'"),
        neighbour_seconds=0.6,
    )
    assert (run.state, run.result) == (RunState.SUCCEEDED, "done"), run.error


_RESULTS = {
    "python": ("def handler(context): return 'x' * (80 * 2**20)", {"result_too_large", "MemoryError"}),
    "node": ("export const handler = () => 'x'.repeat(80 * 2 ** 20);", {"result_too_large", "memory_exceeded"}),
    "python with more than its memory": ("def handler(context): return ['x' * 2**30]", {"MemoryError"}),
    "node with more than a string can be": ("export const handler = () => 'x'.repeat(2 ** 30);", {"RangeError"}),
}


@pytest.mark.parametrize(("code", "types"), _RESULTS.values(), ids=_RESULTS)
async def test_a_huge_result_is_refused(victim: Target, code: str, types: set[str]) -> None:
    run = await victim.attack(code, neighbour_seconds=0.6)
    kind, message = _error(run)
    assert kind in types, message


_SILENT = {
    "closes its channels": (
        "import os\ndef handler(context):\n    os.closerange(1, 1024)\n    os._exit(0)",
        "no_result",
        "exit code 0 and without a result",
    ),
    "exits at once": ("import os\ndef handler(context): os._exit(0)", "no_result", "exit code 0 and without a result"),
    "becomes another program": (
        "import os\ndef handler(context): os.execv('/bin/sh', ['sh', '-c', 'exit 3'])",
        "no_result",
        "exit code 3 and without a result",
    ),
    "exits with a code that is no signal's": (
        "import os\ndef handler(context): os._exit(255)",
        "no_result",
        "exit code 255 and without a result",
    ),
    "node exits": ("export const handler = () => process.exit(0);", "no_result", "exit code 0 and without a result"),
    "kills all it can": (
        "import os\ndef handler(context):\n    try: os.kill(-1, 9)\n    finally: os.kill(os.getpid(), 9)",
        "crashed",
        "SIGKILL",
    ),
}


@pytest.mark.parametrize(("code", "kind", "words"), _SILENT.values(), ids=_SILENT)
async def test_a_job_that_ends_without_a_result_has_failed(victim: Target, code: str, kind: str, words: str) -> None:
    run = await victim.attack(code)
    found, message = _error(run)
    assert (found, words in message) == (kind, True), message


_ENDLESS = {
    "python deaf to SIGTERM": """
        import signal
        def handler(context):
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
                signal.signal(number, signal.SIG_IGN)
            while True: pass
    """,
    "python that stops itself": """
        import os, signal
        def handler(context):
            os.kill(os.getpid(), signal.SIGSTOP)
    """,
    "python that stops its group": """
        import os, signal
        def handler(context):
            os.kill(0, signal.SIGSTOP)
    """,
    "node busy for ever": "process.on('SIGTERM', () => {}); export function handler() { for (;;); }",
}


@pytest.mark.parametrize("code", _ENDLESS.values(), ids=_ENDLESS)
async def test_a_job_that_does_not_end_is_ended(victim: Target, code: str) -> None:
    run = await victim.attack(code, limits={"timeout_seconds": 0.8})
    assert run.state is RunState.TIMED_OUT, run.error
    assert run.error is not None
    assert "The run took longer than 0.8 seconds, which is its limit, and was ended." in run.error.message


_STRAYS = {
    "python forked twice, without an environment": f"""
        import os
        def handler(context):
            read, write = os.pipe()
            for _ in range(5):
                if os.fork() == 0:
                    os.setsid()
                    if os.fork() == 0:
                        os.setsid()
                        os.write(write, b'x')
                        os.set_inheritable(1, True)
                        os.execve('/bin/sh', ['{MARK}', '-c', 'trap "" TERM HUP; while :; do /bin/sleep 1; done'], {{}})
                    os._exit(0)
            for _ in range(5):
                os.read(read, 1)
            return 'left'
    """,
    "node detached": f"""
        import {{ spawn }} from 'node:child_process';
        export async function handler() {{
          for (let i = 0; i < 5; i++) {{
            const options = {{ detached: true, stdio: 'inherit', env: {{}}, argv0: '{MARK}' }};
            spawn('/bin/sh', ['-c', '(trap "" TERM; while :; do /bin/sleep 1; done) & exit'], options).unref();
          }}
          await new Promise((done) => setTimeout(done, 200));
          return 'left';
        }}
    """,
}


@pytest.mark.parametrize("code", _STRAYS.values(), ids=_STRAYS)
async def test_what_a_job_leaves_running_ends_with_it(victim: Target, code: str) -> None:
    run = await victim.attack(code)
    assert run.result == "left", run.error


_OUTPUTS: dict[str, tuple[str, Any]] = {
    "links are left out": (
        """
        os.symlink('/etc/passwd', out / 'file')
        os.symlink('/', out / 'directory')
        os.symlink(out, out / 'itself')
        os.symlink('/proc/self/environ', out / 'environ')
        (out / 'real').write_text('r')
        """,
        ["real"],
    ),
    "swapped while it runs": (
        """
        import threading
        (out / 'd').mkdir()
        (out / 'd' / 'passwd').write_text('mine')
        def swap():
            while True:
                for name in ('a', 'b'):
                    (out / 'd').rename(out / 'kept')
                    os.symlink('/etc', out / 'd')
                    os.unlink(out / 'd')
                    (out / 'kept').rename(out / 'd')
        threading.Thread(target=swap, daemon=True).start()
        """,
        None,
    ),
    "pipes and sockets are left out": (
        """
        os.mkfifo(out / 'pipe')
        (out / 'real').write_text('r')
        """,
        ["real"],
    ),
    "deeper than a path can be": ("deep(out)", ("output_unreadable", "File name too long")),
    "deep where nobody looks": ("deep(context.work_dir)", []),
    "a line break in a name": ("(out / 'a\\nb').touch()", ("output_name", "characters that can't be shown")),
    "a name that is no text": ("open(os.fsencode(out) + b'/\\xff\\xfe', 'w')", ("output_name", "can't be shown")),
    "directories without permissions": (
        """
        for place in (out, context.work_dir):
            os.makedirs(f'{place}/closed/more')
            os.chmod(f'{place}/closed/more', 0)
            os.chmod(f'{place}/closed', 0)
        """,
        [],
    ),
}
_OUTPUT_JOB = """
import os
from pathlib import Path
def deep(place):
    os.chdir(place)
    for _ in range(100):
        os.mkdir('d' * 200)
        os.chdir('d' * 200)
def handler(context):
    out = Path(context.output_dir)
"""


@pytest.mark.parametrize(("body", "expected"), _OUTPUTS.values(), ids=_OUTPUTS)
async def test_strange_outputs_lead_nowhere(victim: Target, body: str, expected: Any) -> None:
    lines = [line.removeprefix("        ") for line in body.strip("\n").splitlines()]
    run = await victim.attack(_OUTPUT_JOB + "\n".join(f"    {line}" for line in lines))
    if isinstance(expected, tuple):
        kind, message = _error(run)
        assert (kind, expected[1] in message) == (expected[0], True), message
        return
    assert run.state is RunState.SUCCEEDED, run.error
    found = [output.path for output in await victim.runner.client.outputs(run.id)]
    assert expected is None or found == expected
    assert set(found) <= {"real", "d/passwd", "kept/passwd"}
