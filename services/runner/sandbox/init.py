"""The first process of a job where no namespaces are to be had: python -I -S init.py SPEC INFO_FD BLOCK_FD COMMAND…

It starts COMMAND with as few rights as the kernel lets one give up, waits for it, and ends whatever it left behind:
as a subreaper it becomes the parent of everything that lost its own. SPEC is a JSON object:

    landlock   null, or {"read": [paths], "write": [paths], "own": [paths of this process alone]}
    seccomp    null, or a filter (struct sock_filter[]) in hexadecimal

Like bubblewrap it writes {"child-pid": number} to INFO_FD, waits for a byte on BLOCK_FD before it executes COMMAND, and
ends with its exit code, or 128 + the number of the signal that killed it. Standard library only; nothing of ours.
See landlock(7), seccomp(2), capabilities(7), PR_SET_CHILD_SUBREAPER in prctl(2).
"""

import ctypes
import json
import os
import signal
import stat
import struct
import sys
from contextlib import suppress
from typing import Any, NoReturn

PR_SET_PDEATHSIG, PR_CAPBSET_DROP, PR_SET_SECCOMP, PR_SET_SECUREBITS = 1, 24, 22, 28
PR_SET_CHILD_SUBREAPER, PR_SET_NO_NEW_PRIVS, PR_CAP_AMBIENT = 36, 38, 47
PR_CAP_AMBIENT_CLEAR_ALL, SECCOMP_MODE_FILTER, NO_ROOT_PRIVILEGES = 4, 2, 0x2F
CAPABILITY_VERSION_3 = 0x20080522
LANDLOCK_CREATE_RULESET, LANDLOCK_ADD_RULE, LANDLOCK_RESTRICT_SELF = 444, 445, 446  # on every architecture
LANDLOCK_VERSION, LANDLOCK_PATH_BENEATH = 1, 1
EXECUTE, WRITE_FILE, READ_FILE, READ_DIRECTORY = 1, 2, 4, 8
TRUNCATE, IOCTL_DEVICE = 1 << 14, 1 << 15
FILE_RIGHTS = EXECUTE | WRITE_FILE | READ_FILE | TRUNCATE | IOCTL_DEVICE
SCOPE_ABSTRACT_SOCKETS, SCOPE_SIGNALS = 1, 2
LAST_CAPABILITY = 63
LIMITS_OF_CONTROL_GROUPS = {  # by controller; none is version 2
    "": ("memory.max", "memory.high", "cpu.max"),
    "memory": ("memory.limit_in_bytes",),
    "cpu": ("cpu.cfs_quota_us", "cpu.cfs_period_us"),
}

libc = ctypes.CDLL(None, use_errno=True)


def main() -> NoReturn:
    spec, info, block, *command = sys.argv[1:]
    parsed = json.loads(spec)
    for descriptor in (info, block):
        os.set_inheritable(int(descriptor), False)  # noqa: FBT003  # takes no keyword
    runner = os.getppid()
    prctl(PR_SET_CHILD_SUBREAPER, 1)
    signal.signal(signal.SIGTERM, lambda *_: end(128 + signal.SIGTERM))
    prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    child = os.fork()
    if child == 0:
        become(parsed, int(block), command)
    with suppress(OSError):
        os.write(int(info), json.dumps({"child-pid": child}).encode() + b"\n")
    os.closerange(3, 1024)
    if os.getppid() != runner:
        end(128 + signal.SIGTERM)
    while True:
        pid, status = os.wait()
        if pid == child:
            code = os.waitstatus_to_exitcode(status)
            end(code if code >= 0 else 128 - code)


def end(code: int) -> NoReturn:
    """End everything below this process, which whoever lost its parent has become a child of."""
    with suppress(ChildProcessError):
        while True:
            for pid in children():
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            os.wait()
    os._exit(code)


def children() -> list[int]:
    with open(f"/proc/self/task/{os.getpid()}/children") as file:  # noqa: PTH123  # pathlib costs milliseconds here
        return [int(pid) for pid in file.read().split()]


def become(spec: dict[str, Any], block: int, command: list[str]) -> NoReturn:
    """Turn this process into `command`, with what `spec` leaves of its rights."""
    try:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        os.setsid()
        if not os.read(block, 1):
            os._exit(1)  # the runner is gone
        drop_capabilities()
        prctl(PR_SET_NO_NEW_PRIVS, 1)
        if spec["landlock"] is not None:
            restrict_files(spec["landlock"])
        if spec["seccomp"] is not None:
            filter_calls(bytes.fromhex(spec["seccomp"]))
        os.execv(command[0], command)  # noqa: S606  # no shell is wanted
    except OSError as error:
        os.write(2, f"the sandbox could not be set up: {error}\n".encode())
    os._exit(126)


def drop_capabilities() -> None:
    """Give up all capabilities, and that root gets them back with a new program."""
    for capability in range(LAST_CAPABILITY + 1):
        if libc.prctl(PR_CAPBSET_DROP, capability, 0, 0, 0) != 0:
            break  # no more of them, or none to begin with
    libc.prctl(PR_SET_SECUREBITS, NO_ROOT_PRIVILEGES, 0, 0, 0)  # only with CAP_SETPCAP, and else not needed
    prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL)
    header, nothing = struct.pack("=Ii", CAPABILITY_VERSION_3, 0), bytes(24)
    check(libc.capset(header, nothing))


def restrict_files(paths: dict[str, list[str]]) -> None:
    version = check(libc.syscall(LANDLOCK_CREATE_RULESET, None, ctypes.c_size_t(0), LANDLOCK_VERSION))
    handled = (1 << (13, 14, 15, 15, 16)[min(version, 5) - 1]) - 1
    scoped = SCOPE_ABSTRACT_SOCKETS | SCOPE_SIGNALS if version >= 6 else 0
    attributes = struct.pack("=QQQ", handled, 0, scoped)[: 24 if version >= 6 else 8]
    ruleset = check(libc.syscall(LANDLOCK_CREATE_RULESET, attributes, ctypes.c_size_t(len(attributes)), 0))
    reading = READ_FILE | READ_DIRECTORY | EXECUTE
    own = [*paths["own"], *limits_of_control_groups()]
    for rights, names in ((reading, paths["read"]), (reading, own), (handled, paths["write"])):
        for name in names:
            allow_beneath(ruleset, name, rights & handled)
    check(libc.syscall(LANDLOCK_RESTRICT_SELF, ruleset, 0))
    os.close(ruleset)


def limits_of_control_groups() -> list[str]:
    """Where this process finds how much memory and CPU it may use (cgroups(7)), also in a container's view of them.

    Programs look there for what to do with themselves. Some, DuckDB for one, crash where they see a file and can't
    read it.
    """
    found = []
    with open("/proc/self/cgroup") as file:  # noqa: PTH123  # as above
        for line in file:
            _, controllers, path = line.rstrip("\n").split(":", 2)
            for controller in controllers.split(","):
                mount = f"/sys/fs/cgroup/{controller}"
                for name in LIMITS_OF_CONTROL_GROUPS.get(controller, ()):
                    found += [f"{mount}/{name}", f"{mount}/{path}/{name}"]
    return found


def allow_beneath(ruleset: int, path: str, rights: int) -> None:
    try:
        descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    if not stat.S_ISDIR(os.fstat(descriptor).st_mode):
        rights &= FILE_RIGHTS
    rule = struct.pack("=Qi", rights, descriptor)
    check(libc.syscall(LANDLOCK_ADD_RULE, ruleset, LANDLOCK_PATH_BENEATH, rule, 0))
    os.close(descriptor)


def filter_calls(program: bytes) -> None:
    kept = ctypes.create_string_buffer(program, len(program))
    header = struct.pack("@HP", len(program) // 8, ctypes.addressof(kept))
    check(libc.prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, header, 0, 0))


def prctl(option: int, value: int) -> None:
    check(libc.prctl(option, ctypes.c_ulong(value), ctypes.c_ulong(0), ctypes.c_ulong(0), ctypes.c_ulong(0)))


def check(result: int) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result


if __name__ == "__main__":
    main()
