"""Confinement that needs no privilege and no namespaces: `init.py` starts the job and gives up rights before."""

import ctypes
import functools
import json
import socket
import sys
from collections.abc import Sequence
from pathlib import Path

from services.runner.sandbox import init, seccomp
from services.runner.sandbox.layers import (
    CONFIGURATION,
    HARNESSES,
    NETWORK_CONFIGURATION,
    Confinement,
    Handshake,
    Interior,
    Level,
    Program,
    Wrapped,
)
from services.runner.scratch import RunDirectory

_INIT = Path(__file__).with_name("init.py")
_READ = (
    *("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32"),
    *CONFIGURATION,
    *("/proc/meminfo", "/proc/cpuinfo", "/proc/stat", "/proc/version", "/proc/loadavg", "/proc/uptime"),
)
_DEVICES = ("/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom")
_OWN = ("/proc/self",)
_SCOPES_SINCE = 6  # the version of Landlock that keeps signals and abstract sockets to the job itself


class Unprivileged:
    """Landlock and seccomp, or with `landlock=False` only what needs neither: no capabilities, limits, a subreaper."""

    def __init__(self, *, landlock: bool) -> None:
        self.level = Level.LANDLOCK if landlock else Level.LIMITS

    def confinement(self, *, network: bool) -> Confinement:
        """What the level says."""
        if self.level is Level.LIMITS:
            return Confinement(self.level, ("no-capabilities", "no-new-privs", "rlimits", "subreaper"), network=True)
        scopes = ("landlock-scopes",) if _landlock_version() >= _SCOPES_SINCE else ()
        layers = ("landlock", *scopes, "seccomp", "no-capabilities", "no-new-privs", "rlimits", "subreaper")
        return Confinement(self.level, layers, network)

    def interior(self, program: Program, directory: RunDirectory) -> Interior:
        """The paths as they are: there is no other view of the file system."""
        return Interior(
            interpreter=str(program.interpreter),
            harnesses=str(HARNESSES),
            bundle=str(directory.bundle),
            inputs=str(directory.inputs),
            outputs=str(directory.outputs),
            tmp=str(directory.tmp),
            home=str(directory.home),
        )

    def wrap(
        self,
        program: Program,
        directory: RunDirectory,
        arguments: Sequence[str],
        handshake: Handshake,
        *,
        network: bool,
    ) -> Wrapped:
        """See `Sandbox`."""
        confined = self.level is Level.LANDLOCK
        read = [
            *_READ,
            *(NETWORK_CONFIGURATION if network else ()),
            str(program.interpreter),
            *map(str, program.support),
        ]
        read += [str(path) for path in (HARNESSES, directory.bundle, directory.inputs)]
        write = [str(path) for path in (directory.outputs, directory.tmp, directory.home)]
        # Sockets of the file system belong to whoever may write to them, and Landlock does not judge that: so none.
        sockets = (socket.AF_INET, socket.AF_INET6) if network else ()
        spec = {
            "landlock": {"read": read, "write": [*write, *_DEVICES], "own": list(_OWN)} if confined else None,
            "seccomp": seccomp.build_filter(sockets, among_peers=True).hex() if confined else None,
        }
        command = [sys.executable, "-I", "-S", str(_INIT), json.dumps(spec), str(handshake.info), str(handshake.block)]
        return Wrapped([*command, str(program.interpreter), *arguments])


@functools.cache
def _landlock_version() -> int:
    """The kernel's version of Landlock; -1 where it has none."""
    version: int = ctypes.CDLL(None).syscall(init.LANDLOCK_CREATE_RULESET, None, 0, init.LANDLOCK_VERSION)
    return version
