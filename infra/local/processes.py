"""The three services as child processes: started, watched, stopped."""

import asyncio
import contextlib
import ctypes
import os
import signal
import sys
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path

_REPOSITORY = Path(__file__).resolve().parents[2]
_STOP_SECONDS = 30.0
_PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None

ShowLine = Callable[[str, str], None]


class ServiceDied(Exception):
    """A service ended by itself; the message holds its last lines."""


class Service:
    """One service. Every line it prints goes to `show` and to its log file."""

    def __init__(self, name: str, environment: Mapping[str, str], log_path: Path, show: ShowLine | None) -> None:
        self.name = name
        self._environment = environment
        self._log_path = log_path
        self._show = show
        self._tail: deque[str] = deque(maxlen=15)
        self._process: asyncio.subprocess.Process | None = None
        self._reader: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Start it; it is ready only when its `/readyz` says so."""
        self._process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            f"services.{self.name}",
            "serve",
            cwd=_REPOSITORY,
            env={**inherited_environment(), **self._environment},
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            limit=4 * 1024 * 1024,
            start_new_session=True,  # Ctrl-C is for the supervisor, which stops its parts in order
            preexec_fn=_end_with_parent,
        )
        self._reader = asyncio.create_task(self._read())

    async def wait(self) -> None:
        """Return never, or raise ServiceDied when the service ends."""
        if self._process is None or self._reader is None:
            raise RuntimeError(f"{self.name} was not started")
        code = await self._process.wait()
        await asyncio.wait([self._reader], timeout=2)
        tail = "\n".join(f"    {line}" for line in self._tail)
        raise ServiceDied(f"the {self.name} ended by itself with code {code}. Its last lines:\n{tail}")

    async def stop(self) -> None:
        """Ask it to end, and kill it when it doesn't within half a minute."""
        if self._process is None:
            return
        if self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.terminate()
            try:
                async with asyncio.timeout(_STOP_SECONDS):
                    await self._process.wait()
            except TimeoutError:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(self._process.pid, signal.SIGKILL)
                await self._process.wait()
        if self._reader is not None:
            await asyncio.wait([self._reader], timeout=2)
            self._reader.cancel()

    async def _read(self) -> None:
        if self._process is None or self._process.stdout is None:
            return
        with self._log_path.open("a", encoding="utf-8") as log:
            while raw := await self._process.stdout.readline():
                line = raw.decode("utf-8", "replace").rstrip("\n")
                self._tail.append(line)
                log.write(line + "\n")
                log.flush()
                if self._show is not None:
                    self._show(self.name, line)


async def run_command(module: str, *arguments: str, environment: Mapping[str, str]) -> None:
    """Run `python -m module arguments…` to its end, or raise ServiceDied with what it printed."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        module,
        *arguments,
        cwd=_REPOSITORY,
        env={**inherited_environment(), **environment},
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    output, _ = await process.communicate()
    if process.returncode != 0:
        raise ServiceDied(f"{module} {' '.join(arguments[:1])} failed:\n{output.decode('utf-8', 'replace').strip()}")


def inherited_environment() -> dict[str, str]:
    """This process's environment without settings of services, which are all given by the stack."""
    return {key: value for key, value in os.environ.items() if not key.startswith("STOWAGE_")}


def _end_with_parent() -> None:
    """In the child: be asked to end when the supervisor dies, however it dies (Linux)."""
    if _LIBC is not None:
        _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
