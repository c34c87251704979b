"""An embedded stack in processes of its own, as `make up` and `make demo` start it."""

import asyncio
import contextlib
import os
import random
import signal
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

from infra.local.home import Home, StackInfo
from infra.local.ports import Ports, PortTaken

REPOSITORY = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Place:
    """Where a stack lives: its state, its ports, and the temporary directory of its processes."""

    home: Home
    port_base: int
    temporary: Path

    @property
    def environment(self) -> dict[str, str]:
        """The environment of `python -m infra.local …`."""
        return {
            **os.environ,
            "STOWAGE_HOME": str(self.home.path),
            "STOWAGE_PORT_BASE": str(self.port_base),
            "TMPDIR": str(self.temporary),
            "COLUMNS": "160",
        }


def new_place(directory: Path) -> Place:
    """A place below `directory` whose ports are free."""
    temporary = directory / "tmp"
    temporary.mkdir(parents=True)
    return Place(Home(directory / "home"), free_port_base(), temporary)


def free_port_base() -> int:
    """A base above which the ports of a stack are free."""
    while True:
        base = random.randrange(20_000, 30_000, 20)  # noqa: S311  # nothing secret about it
        with contextlib.suppress(PortTaken):
            Ports.from_base(base).check()
            return base


async def run_local(place: Place, *arguments: str) -> tuple[int, str]:
    """Run `python -m infra.local` to its end: exit code, and what it printed."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "infra.local", *arguments,
        cwd=REPOSITORY, env=place.environment, stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip
    output, _ = await process.communicate()
    return process.returncode or 0, output.decode()


@contextlib.asynccontextmanager
async def stack_up(place: Place) -> AsyncIterator[StackInfo]:
    """`make up`, until the context ends; then Ctrl-C, and it must end well."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "infra.local", "up",
        cwd=REPOSITORY, env=place.environment, stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip
    printed = asyncio.create_task(_collect(process))
    try:
        async with asyncio.timeout(60):
            while (info := place.home.running_stack()) is None:
                assert process.returncode is None, await printed
                await asyncio.sleep(0.1)
        yield info
    finally:
        if process.returncode is None:
            process.send_signal(signal.SIGINT)
        code = await process.wait()
        output = await printed
    assert code == 0, output


async def _collect(process: asyncio.subprocess.Process) -> str:
    assert process.stdout is not None
    return (await process.stdout.read()).decode()


def archives_below(*directories: Path) -> list[Path]:
    """Every tarball and every `node_modules` below the directories, the virtual environment and git aside."""
    found = []
    for directory in directories:
        for folder, names, files in os.walk(directory):
            names[:] = [name for name in names if name not in (".venv", ".git")]
            found += [Path(folder) / name for name in names if name == "node_modules"]
            found += [Path(folder) / name for name in files if ".tar" in name or name.endswith(".tgz")]
    return found
