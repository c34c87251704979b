"""Confinement by namespaces, set up by bubblewrap: a job sees the system's programs and its own directory alone."""

import functools
import os
import socket
from collections.abc import Sequence
from pathlib import Path

from services.runner.sandbox import seccomp
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

_ROOT = "/job"
_UID = "1000"
_SYSTEM = ("/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32")
_SHARED_MEMORY_BYTES = 64 * 1024 * 1024
_USERS = f"job:x:{_UID}:{_UID}:job:{_ROOT}/home:/usr/sbin/nologin\n".encode()
_SOCKETS = (socket.AF_UNIX, socket.AF_INET, socket.AF_INET6)  # what they reach, the network namespace decides
_SOCKETS_OF_HOST = (socket.AF_INET, socket.AF_INET6)  # abstract Unix sockets belong to the network that is shared


class Bubblewrap:
    """Own user, PID, IPC, UTS, cgroup and mount namespaces, and a network namespace unless the run may use the net."""

    level = Level.BUBBLEWRAP

    def __init__(self, program: Path) -> None:
        self._program = program
        self._system = [argument for path in map(Path, _SYSTEM) for argument in _system_directory(path)]

    def confinement(self, *, network: bool) -> Confinement:
        """All of it."""
        layers = ["user-namespace", "pid-namespace", "mount-namespace", "ipc-namespace", "uts-namespace"]
        layers += [] if network else ["network-namespace"]
        layers += ["no-capabilities", "no-new-privs", *(["seccomp"] if seccomp.is_supported() else []), "rlimits"]
        return Confinement(self.level, tuple(layers), network)

    def interior(self, program: Program, _directory: RunDirectory) -> Interior:
        """The same for every job, whatever the machine looks like."""
        interpreter = str(program.interpreter) if program.support else f"{_ROOT}/bin/{program.interpreter.name}"
        return Interior(
            interpreter=interpreter,
            harnesses=f"{_ROOT}/harness",
            bundle=f"{_ROOT}/bundle",
            inputs=f"{_ROOT}/inputs",
            outputs=f"{_ROOT}/outputs",
            tmp="/tmp",  # noqa: S108  # the job's own
            home=f"{_ROOT}/home",
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
        users = _descriptor_with(_USERS)
        descriptors = [users]
        command = [str(self._program), "--unshare-user", "--unshare-pid", "--unshare-ipc", "--unshare-uts"]
        command += ["--unshare-cgroup-try", *([] if network else ["--unshare-net"])]
        command += ["--uid", _UID, "--gid", _UID, "--hostname", "job", "--cap-drop", "ALL", "--disable-userns"]
        command += ["--die-with-parent", "--new-session"]
        command += ["--info-fd", str(handshake.info), "--block-fd", str(handshake.block)]
        if seccomp.is_supported():
            descriptors.append(_descriptor_with(_filter(network=network)))
            command += ["--seccomp", str(descriptors[-1])]
        command += [*self._system_files(users, network=network), *self._own_files(program, directory)]
        inside = self.interior(program, directory)
        command += ["--remount-ro", "/", "--chdir", inside.bundle, "--", inside.interpreter, *arguments]
        return Wrapped(command, descriptors, contained=True)

    def _system_files(self, users: int, *, network: bool) -> list[str]:
        """Options for what every job sees; `users` is a descriptor with its /etc/passwd."""
        options = ["--ro-bind", "/usr", "/usr", *self._system, "--ro-bind-data", str(users), "/etc/passwd"]
        for path in (*CONFIGURATION, *(NETWORK_CONFIGURATION if network else ())):
            options += ["--ro-bind-try", path, path]
        # Where the runner is root, so are its jobs to the kernel, whose settings they could change in /proc/sys.
        options += ["--proc", "/proc", "--remount-ro", "/proc", "--dev", "/dev"]
        return [*options, "--size", str(_SHARED_MEMORY_BYTES), "--tmpfs", "/dev/shm", "--remount-ro", "/dev"]  # noqa: S108

    def _own_files(self, program: Program, directory: RunDirectory) -> list[str]:
        """Options for the interpreter and what belongs to the job."""
        inside = self.interior(program, directory)
        read = [(str(path), str(path)) for path in program.support if not path.is_relative_to("/usr")]
        if not program.support:
            read.append((str(program.interpreter), inside.interpreter))
        read += [(str(HARNESSES), inside.harnesses)]
        read += [(str(directory.bundle), inside.bundle), (str(directory.inputs), inside.inputs)]
        write = [(str(directory.outputs), inside.outputs), (str(directory.home), inside.home)]
        options = ["--bind", str(directory.tmp), inside.tmp]
        for option, places in (("--ro-bind", read), ("--bind", write)):
            for outside, place in places:
                options += [option, outside, place]
        return options


@functools.cache
def _filter(*, network: bool) -> bytes:
    return seccomp.build_filter(_SOCKETS_OF_HOST if network else _SOCKETS, among_peers=False)


def _system_directory(path: Path) -> list[str]:
    if path.is_symlink():
        return ["--symlink", str(path.readlink()), str(path)]
    return ["--ro-bind", str(path), str(path)] if path.is_dir() else []


def _descriptor_with(data: bytes) -> int:
    descriptor = os.memfd_create("stowage", os.MFD_CLOEXEC)
    os.write(descriptor, data)
    os.lseek(descriptor, 0, os.SEEK_SET)
    return descriptor
