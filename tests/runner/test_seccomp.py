"""The filter of system calls: that it is well formed, and what a process that carries it may still do."""

import errno
import json
import os
import platform
import socket
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from services.runner.sandbox import seccomp

_MACHINE = seccomp._ARCHITECTURES[platform.machine()]
_ROOT = Path(__file__).parents[2]
_JUMPS, _RETURN = {0x15, 0x35, 0x45}, 0x06

# Carries the filter in argv[1] and tells, for each list of a number and arguments in argv[2], what came of the call.
_CALLER = """
import ctypes, json, sys
from services.runner.sandbox import init
init.drop_capabilities()
init.prctl(init.PR_SET_NO_NEW_PRIVS, 1)
init.filter_calls(bytes.fromhex(sys.argv[1]))
found = []
for call in json.loads(sys.argv[2]):
    ctypes.set_errno(0)
    result = init.libc.syscall(*map(ctypes.c_long, call))
    found.append(ctypes.get_errno() if result < 0 else 0)
print(json.dumps(found))
"""
_BAD = [-1] * 6  # arguments with which every call fails in another way, where the filter lets it through


def _outcomes(calls: list[list[int]], *families: socket.AddressFamily, among_peers: bool = True) -> list[int]:
    """What the kernel answers: 0 or the number of the error."""
    program = seccomp.build_filter(families, among_peers=among_peers).hex()
    finished = subprocess.run(
        [sys.executable, "-c", _CALLER, program, json.dumps(calls)],
        cwd=_ROOT,
        capture_output=True,
        check=True,
        text=True,
    )
    found: list[int] = json.loads(finished.stdout)
    return found


@pytest.mark.parametrize("machine", sorted(seccomp._ARCHITECTURES))
@pytest.mark.parametrize("among_peers", [False, True])
def test_every_path_through_the_filter_ends_with_a_verdict(
    machine: str, among_peers: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(platform, "machine", lambda: machine)
    program = seccomp.build_filter((socket.AF_INET, socket.AF_INET6), among_peers=among_peers)
    steps = list(struct.iter_unpack("=HBBI", program))
    assert len(steps) < 4096
    for at, (code, if_true, if_false, _) in enumerate(steps):
        if code in _JUMPS:
            assert at + 1 + max(if_true, if_false) < len(steps)
        elif code != _RETURN:
            assert at + 1 < len(steps)
    assert steps[-1][0] == _RETURN


@pytest.mark.parametrize("machine", sorted(seccomp._ARCHITECTURES))
def test_no_call_is_named_twice(machine: str) -> None:
    table = seccomp._ARCHITECTURES[machine]
    named = [*table.denied, *table.denied_to_peers, *table.pretended, *table.open, *table.self_only]
    named += [table.clone, table.clone3, table.socket, table.openat2, table.setpriority, table.ioprio_set]
    assert len(named) == len(set(named))


@pytest.mark.parametrize("among_peers", [False, True])
def test_denied_calls_fail(among_peers: bool) -> None:
    denied = [*_MACHINE.denied, *(_MACHINE.denied_to_peers if among_peers else ())]
    found = _outcomes([[number, *_BAD] for number in denied], among_peers=among_peers)
    assert dict(zip(denied, found, strict=True)) == dict.fromkeys(denied, errno.EPERM)
    assert _outcomes([[_MACHINE.clone3, 0, 0]], among_peers=among_peers) == [errno.ENOSYS]


def test_calls_of_the_second_x86_abi_fail() -> None:
    assert _outcomes([[0x40000000 | 39]]) == [errno.EPERM if platform.machine() == "x86_64" else errno.ENOSYS]


def test_new_namespaces_can_not_be_had_by_clone() -> None:
    new_user, new_network = 0x10000000, 0x40000000
    assert _outcomes([[_MACHINE.clone, flags, 0, 0, 0, 0] for flags in (new_user, new_network)]) == [errno.EPERM] * 2


def test_sockets_are_of_the_allowed_families_alone() -> None:
    families = (socket.AF_INET, socket.AF_INET6, socket.AF_UNIX, socket.AF_NETLINK, socket.AF_PACKET)
    calls = [[_MACHINE.socket, int(family), int(socket.SOCK_STREAM), 0] for family in families[:3]]
    calls += [[_MACHINE.socket, int(family), int(socket.SOCK_RAW), 0] for family in families[3:]]
    refused = errno.EACCES
    assert _outcomes(calls) == [refused] * 5
    assert _outcomes(calls, socket.AF_INET, socket.AF_INET6) == [0, 0, refused, refused, refused]


def test_modes_and_owners_of_files_stay_as_they_are_and_nobody_is_told_so(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch(mode=0o640)
    code = """
import os, sys
from services.runner.sandbox import init
init.drop_capabilities()
init.prctl(init.PR_SET_NO_NEW_PRIVS, 1)
init.filter_calls(bytes.fromhex(sys.argv[1]))
os.chmod(sys.argv[2], 0o777)
os.chown(sys.argv[2], 1, 1)
with open(sys.argv[2]) as opened:
    os.fchmod(opened.fileno(), 0o777)
"""
    before = file.stat()
    program = seccomp.build_filter((), among_peers=True).hex()
    subprocess.run([sys.executable, "-c", code, program, str(file)], cwd=_ROOT, check=True)
    after = file.stat()
    assert (after.st_mode, after.st_uid) == (before.st_mode, before.st_uid)


def test_a_process_among_peers_may_change_its_own_limits_and_priority_and_no_others() -> None:
    me, other = 0, os.getpid()
    prlimit, affinity, *_ = _MACHINE.self_only
    of_group = 1  # PRIO_PGRP, IOPRIO_WHO_PROCESS
    allowed = [
        [prlimit, me, 7, 0, 0, 0],
        [_MACHINE.setpriority, 0, me, 5],
        [_MACHINE.ioprio_set, of_group, me, 0],
    ]
    denied = [
        [prlimit, other, 7, 0, 0, 0],
        [affinity, other, 8, 0],
        [_MACHINE.setpriority, 0, other, 5],
        [_MACHINE.setpriority, of_group, me, 5],
        [_MACHINE.ioprio_set, of_group, other, 0],
        [_MACHINE.ioprio_set, 2, me, 0],
    ]
    assert _outcomes([*allowed, *denied]) == [0] * len(allowed) + [errno.EPERM] * len(denied)


def test_nobody_among_peers_can_empty_a_file_that_he_may_only_read() -> None:
    openings = [[number, *_BAD] for number in _MACHINE.open]
    for call, argument in zip(openings, _MACHINE.open.values(), strict=True):
        call[1 + argument] = os.O_TRUNC
    assert _outcomes(openings) == [errno.EPERM] * len(openings)
    for call, argument in zip(openings, _MACHINE.open.values(), strict=True):
        call[1 + argument] = os.O_TRUNC | os.O_WRONLY
    assert errno.EPERM not in _outcomes(openings)
