"""Jobs that take all they can get: each ends with a sentence that says so, and its neighbours notice nothing."""

from pathlib import Path

import pytest

from libs.common.models import RunState
from tests.runner.hostile import LIMITS, Target

_NEIGHBOUR_SECONDS = 0.6

# The kernel does not bound root's processes, so these bombs stop by themselves at some hundred.
_FORK = {
    "python": """
        import mmap, os, time
        def handler(context):
            count = mmap.mmap(-1, 8)
            while (number := int.from_bytes(count[:], 'little')) < 400:
                count[:] = (number + 1).to_bytes(8, 'little')
                os.fork()
            time.sleep(20)
    """,
    "node": """
        import { spawn } from 'node:child_process';
        export function handler() {
          for (let i = 0; i < 100; i++) spawn('/bin/sleep', ['20'], { stdio: 'ignore', detached: true });
          return new Promise(() => setInterval(() => {}, 1000));
        }
    """,
    "python whose processes are gone before anybody looks": """
        import os, signal
        def handler(context):
            for _ in range(80):
                if os.fork() == 0:
                    while True:
                        signal.alarm(20)
                        if os.fork():
                            os._exit(0)
            signal.pause()
    """,
}


@pytest.mark.parametrize("code", _FORK.values(), ids=_FORK)
async def test_a_fork_bomb_is_ended(victim: Target, code: str) -> None:
    run = await victim.attack(code, neighbour_seconds=_NEIGHBOUR_SECONDS)
    assert run.state is RunState.FAILED
    assert run.error is not None
    assert (run.error.type, run.error.message) == (
        "processes_exceeded",
        (
            "The job had more than 64 processes, which is the limit, and was ended. Start fewer at a time, or raise "
            "“processes” in the job's limits."
        ),
    )


_MEMORY = {
    "python in one process": (
        """
        def handler(context):
            kept = []
            while True:
                kept.append(bytearray(2**24))
        """,
        {"MemoryError"},
        "",
    ),
    "python in many processes": (
        """
        import os, time
        def handler(context):
            for _ in range(8):
                if os.fork() == 0:
                    kept = bytearray(b'x') * (100 * 2**20)
                    time.sleep(20)
            time.sleep(20)
        """,
        {"memory_exceeded"},
        "used more than 256 MiB of memory together",
    ),
    "python in shared memory": (
        """
        import mmap, time
        def handler(context):
            kept = mmap.mmap(-1, 2**30)
            for at in range(0, 2**30, 4096):
                kept[at] = 1
            time.sleep(20)
        """,
        {"memory_exceeded"},
        "used more than 256 MiB of memory together",
    ),
    "python in files of memory": (
        """
        import os, time
        def handler(context):
            kept = [os.memfd_create('m') for _ in range(16)]
            for file in kept:
                for _ in range(32):
                    os.write(file, bytes(2**20))
            time.sleep(20)
        """,
        {"memory_exceeded"},
        "used more than 256 MiB of memory together",
    ),
    "node on its heap": (
        """
        export function handler() {
          const kept = [];
          for (;;) kept.push(new Array(1e5).fill(kept.length));
        }
        """,
        {"memory_exceeded", "crashed"},
        "limit",
    ),
    "node in buffers": (
        """
        export function handler() {
          const kept = [];
          for (;;) kept.push(Buffer.alloc(2 ** 24, 1));
        }
        """,
        {"memory_exceeded", "RangeError", "crashed"},
        "",
    ),
}


@pytest.mark.parametrize(("code", "types", "words"), _MEMORY.values(), ids=_MEMORY)
async def test_a_memory_bomb_is_ended(victim: Target, code: str, types: set[str], words: str) -> None:
    run = await victim.attack(code, neighbour_seconds=_NEIGHBOUR_SECONDS)
    assert run.state is RunState.FAILED
    assert run.error is not None
    assert run.error.type in types, run.error
    assert words in run.error.message


_DISK = {
    "python": """
        from itertools import count
        from pathlib import Path
        def handler(context):
            for number in count():
                Path(context.output_dir, str(number)).write_bytes(bytes(2**22))
    """,
    "node": """
        import fs from 'node:fs';
        export function handler(context) {
          const block = Buffer.alloc(2 ** 22, 1);
          for (let i = 0; ; i++) fs.writeFileSync(`${context.workDir}/${i}`, block);
        }
    """,
    "python at home": """
        import os
        from itertools import count
        from pathlib import Path
        def handler(context):
            for number in count():
                Path(os.environ['HOME'], str(number)).write_bytes(bytes(2**22))
    """,
    "python in deleted files": """
        import os, tempfile, time
        def handler(context):
            kept = []
            for _ in range(100):
                kept.append(tempfile.TemporaryFile())
                kept[-1].write(bytes(2**22))
                kept[-1].flush()
            time.sleep(20)
    """,
}


@pytest.mark.parametrize("code", _DISK.values(), ids=_DISK)
async def test_a_disk_filler_is_ended(victim: Target, code: str) -> None:
    run = await victim.attack(code, neighbour_seconds=_NEIGHBOUR_SECONDS)
    assert run.state is RunState.FAILED
    assert run.error is not None
    assert (run.error.type, run.error.message) == (
        "disk_exceeded",
        (
            "The job's files took more than 64 MiB, which is the limit, and it was ended. Write less, delete what is "
            "done with, or raise “diskBytes” in the job's limits."
        ),
    )


async def test_shared_memory_has_room_for_little_or_nothing(victim: Target) -> None:
    run = await victim.attack(
        """
        def handler(context):
            with open('/dev/shm/filler', 'wb') as file:
                while True:
                    file.write(bytes(2**20))
        """,
        neighbour_seconds=_NEIGHBOUR_SECONDS,
    )
    assert run.error is not None
    assert run.error.type == {"bubblewrap": "OSError", "landlock": "PermissionError"}[victim.level]
    assert not Path("/dev/shm/filler").exists()


_FILES = {
    "python": """
        from pathlib import Path
        def handler(context):
            for number in range(500_000):
                Path(context.output_dir, str(number)).touch()
    """,
    "node": """
        import fs from 'node:fs';
        export function handler(context) {
          for (let i = 0; i < 500_000; i++) fs.mkdirSync(`${context.outputDir}/${i}`);
        }
    """,
}


@pytest.mark.parametrize("code", _FILES.values(), ids=_FILES)
async def test_half_a_million_files_are_ended_long_before(victim: Target, code: str) -> None:
    run = await victim.attack(code, neighbour_seconds=_NEIGHBOUR_SECONDS)
    assert run.error is not None
    assert (run.error.type, run.error.message) == (
        "files_exceeded",
        (
            "The job made more than 2000 files and directories, which is the limit, and was ended. Put what belongs "
            "together into one file."
        ),
    )


async def test_more_outputs_than_a_run_may_leave_are_refused_together(victim: Target) -> None:
    run = await victim.attack("""
        from pathlib import Path
        def handler(context):
            for number in range(600):
                Path(context.output_dir, str(number)).touch()
    """)
    assert run.error is not None
    assert (run.error.type, run.error.message) == (
        "outputs_too_many",
        "The run left more than 500 files, which is the limit.",
    )


async def test_a_file_that_only_seems_to_be_large_is_refused(victim: Target) -> None:
    run = await victim.attack("def handler(context): open(context.output_dir + '/sparse', 'wb').truncate(2**40)")
    assert run.error is not None
    assert (run.error.type, run.error.message) == ("OSError", "[Errno 27] File too large")
    run = await victim.attack("""
        def handler(context):
            for name in ('one', 'two', 'three'):
                open(f'{context.output_dir}/{name}', 'wb').truncate(12 * 2**20)
    """)
    assert run.error is not None
    assert run.error.type == "outputs_too_large"


_LOG = {
    "python": "def handler(context):\n    for _ in range(200_000): print('x' * 500)",
    "node": "export function handler() { for (let i = 0; i < 200_000; i++) console.error('x'.repeat(500)); }",
    "python without an end of line": """
        import os
        def handler(context):
            for _ in range(100):
                os.write(1, b'x' * 2**20)
    """,
}


@pytest.mark.parametrize("code", _LOG.values(), ids=_LOG)
async def test_a_log_of_a_hundred_megabytes_is_cut(victim: Target, code: str) -> None:
    run = await victim.attack(code, neighbour_seconds=_NEIGHBOUR_SECONDS)
    assert run.state is RunState.SUCCEEDED, run.error
    log = await victim.runner.log(run.id)
    assert len(log) < 4 * int(LIMITS["max_log_bytes"])
    assert "more lines were dropped: the log is full." in log


async def test_processor_time_is_bounded(victim: Target) -> None:
    run = await victim.attack(
        "def handler(context):\n    while True: pass", limits={"cpu_seconds": 1}, neighbour_seconds=_NEIGHBOUR_SECONDS
    )
    assert run.error is not None
    assert run.error.type == "crashed"
    assert "“cpuSeconds”" in run.error.message


async def test_memory_that_processes_share_counts_once(victim: Target) -> None:
    run = await victim.attack("""
        import os, time
        def handler(context):
            kept = bytearray(b'x') * (120 * 2**20)
            for _ in range(6):
                if os.fork() == 0:
                    time.sleep(1.2)
                    os._exit(0)
            for _ in range(6):
                os.wait()
            return len(kept)
    """)
    assert run.result == 120 * 2**20, run.error
