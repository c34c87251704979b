"""The system calls that no job needs, as a filter for seccomp(2) (classic BPF, see linux/filter.h).

What is not named here stays allowed: the filter takes away what reaches beyond a process — other processes' memory,
mounts, namespaces, the kernel's configuration — and the parts of the kernel in which holes are found again and again.
It works alike under bubblewrap, which loads it itself, and in `init.py`.
"""

import errno
import os
import platform
import socket
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

_LOAD, _JUMP_EQUAL, _JUMP_GREATER_EQUAL, _JUMP_SET, _AND, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x54, 0x06
_NUMBER, _ARCHITECTURE, _ARGUMENTS, _ARGUMENT_BYTES = 0, 4, 16, 8  # in struct seccomp_data, little endian
_ALLOW, _ERRNO, _KILL_PROCESS = 0x7FFF0000, 0x00050000, 0x80000000
_DENY, _ABSENT, _PRETEND = _ERRNO | errno.EPERM, _ERRNO | errno.ENOSYS, _ERRNO  # the last: success, and nothing done
_X32_BIT = 0x40000000  # the second x86-64 ABI, whose numbers would pass the table
_NEW_NAMESPACES = 0x7E020000  # CLONE_NEWCGROUP … CLONE_NEWNET and CLONE_NEWNS in the flags of clone(2)
_OPENING = os.O_TRUNC | os.O_ACCMODE
_PRIO_PROCESS, _IOPRIO_WHO_PROCESS = 0, 1

_Instruction = tuple[int, int, int, int]


@dataclass(frozen=True, slots=True)
class _Architecture:
    """Numbers of calls. `open` and `self_only` map a number to the argument that is looked at."""

    audit: int
    clone: int
    clone3: int
    socket: int
    denied: tuple[int, ...]
    denied_to_peers: tuple[int, ...]
    pretended: tuple[int, ...]
    open: dict[int, int]
    openat2: int
    self_only: tuple[int, ...]
    setpriority: int
    ioprio_set: int


# Numbers from asm/unistd_64.h and asm-generic/unistd.h.
_ARCHITECTURES: Final = {
    "x86_64": _Architecture(
        audit=0xC000003E,
        clone=56,
        clone3=435,
        socket=41,
        denied=(
            *(101, 310, 311, 438, 312, 440, 448),  # ptrace, process_vm_*, pidfd_getfd, kcmp, process_madvise, _mrelease
            *(165, 166, 155, 429, 428, 430, 431, 432, 433, 442, 161),  # mount(2) and its successors, chroot
            *(272, 308),  # unshare, setns
            *(321, 298, 323, 300, 425, 426, 427),  # bpf, perf_event_open, userfaultfd, fanotify_init, io_uring
            *(246, 320, 175, 313, 176),  # kexec, kernel modules
            *(250, 248, 249),  # key rings
            *(303, 304),  # files by handle
            *(169, 167, 168, 170, 171, 163, 179, 443, 103, 153),  # reboot, swap, host name, accounting, quota, log
            *(164, 227, 159, 305),  # setting the clock
            *(172, 173, 154, 135, 180, 212, 134, 136, 139, 156, 447),  # I/O ports, personality, what nobody uses
            *(256, 279),  # moving pages of others
            *(29, 30, 31, 64, 65, 66, 220, 68, 69, 70, 71, 240, 241),  # memory and queues that outlive processes
        ),
        denied_to_peers=(
            *(188, 189, 190, 197, 198, 199, 463, 466, 469),  # extended attributes
            *(76, 254),  # truncate, inotify_add_watch
        ),
        pretended=(
            *(90, 91, 268, 452),  # chmod
            *(92, 93, 94, 260),  # chown
        ),
        open={2: 1, 257: 2},
        openat2=437,
        self_only=(302, 203, 144, 142, 314),  # prlimit64, sched_setaffinity, _setscheduler, _setparam, _setattr
        setpriority=141,
        ioprio_set=251,
    ),
    "aarch64": _Architecture(
        audit=0xC00000B7,
        clone=220,
        clone3=435,
        socket=198,
        denied=(
            *(117, 270, 271, 438, 272, 440, 448),
            *(40, 39, 41, 429, 428, 430, 431, 432, 433, 442, 51),
            *(97, 268),
            *(280, 241, 282, 262, 425, 426, 427),
            *(104, 294, 105, 273, 106),
            *(219, 217, 218),
            *(264, 265),
            *(142, 224, 225, 161, 162, 89, 60, 443, 116, 58),
            *(170, 112, 171, 266),
            *(92, 42, 18, 447),
            *(238, 239),
            *(194, 196, 195, 190, 193, 191, 192, 186, 189, 188, 187, 180, 181),
        ),
        denied_to_peers=(5, 6, 7, 14, 15, 16, 463, 466, 469, 45, 27),
        pretended=(52, 53, 452, 54, 55),
        open={56: 2},
        openat2=437,
        self_only=(261, 122, 119, 118, 274),
        setpriority=140,
        ioprio_set=30,
    ),
}


def is_supported() -> bool:
    """Whether there is a filter for this machine's processor."""
    return platform.machine() in _ARCHITECTURES


def build_filter(allowed_sockets: Sequence[socket.AddressFamily], *, among_peers: bool) -> bytes:
    """The filter as `struct sock_filter[]`. Sockets of other families than `allowed_sockets` can't be made.

    Denied calls fail with EPERM; clone3(2), whose flags a filter can't see, with ENOSYS, so that the C library takes
    clone(2). A process that calls for another architecture is killed.

    `among_peers`: the job sees files and processes of others that have its user, and Landlock judges neither what a
    file is like nor the limits and priorities of a process. Then a process can change these of none but itself, and
    modes and owners of files stay as they are: the calls succeed and do nothing, since programs that copy files take it
    for a failure otherwise.
    """
    machine = _ARCHITECTURES[platform.machine()]
    program: list[_Instruction] = [
        (_LOAD, 0, 0, _ARCHITECTURE),
        (_JUMP_EQUAL, 1, 0, machine.audit),
        (_RETURN, 0, 0, _KILL_PROCESS),
        (_LOAD, 0, 0, _NUMBER),
        (_JUMP_GREATER_EQUAL, 0, 1, _X32_BIT),
        (_RETURN, 0, 0, _DENY),
        *_rule(machine.clone3, [(_RETURN, 0, 0, _ABSENT)]),
    ]
    for number in machine.denied:
        program += _rule(number, [(_RETURN, 0, 0, _DENY)])
    if among_peers:
        program += _rules_among_peers(machine)
    program += _rule(
        machine.clone, [_load(0), (_JUMP_SET, 0, 1, _NEW_NAMESPACES), (_RETURN, 0, 0, _DENY), (_RETURN, 0, 0, _ALLOW)]
    )
    families = [step for family in allowed_sockets for step in _rule(int(family), [(_RETURN, 0, 0, _ALLOW)])]
    program += _rule(machine.socket, [_load(0), *families, (_RETURN, 0, 0, _ERRNO | errno.EACCES)])
    program.append((_RETURN, 0, 0, _ALLOW))
    return b"".join(struct.pack("=HBBI", *instruction) for instruction in program)


def _rules_among_peers(machine: _Architecture) -> list[_Instruction]:
    program: list[_Instruction] = []
    for number in machine.denied_to_peers:
        program += _rule(number, [(_RETURN, 0, 0, _DENY)])
    for number in machine.pretended:
        program += _rule(number, [(_RETURN, 0, 0, _PRETEND)])
    for number, argument in machine.open.items():
        # Kernels before 6.2 let whoever may read a file empty it so.
        program += _rule(number, [_load(argument), (_AND, 0, 0, _OPENING), *_unless_equal(os.O_TRUNC, _ALLOW, _DENY)])
    program += _rule(machine.openat2, [(_RETURN, 0, 0, _ABSENT)])
    for number in machine.self_only:
        program += _rule(number, [_load(0), *_unless_equal(0, _DENY, _ALLOW)])
    for number, kind in ((machine.setpriority, _PRIO_PROCESS), (machine.ioprio_set, _IOPRIO_WHO_PROCESS)):
        itself = [_load(1), *_unless_equal(0, _DENY, _ALLOW)]
        program += _rule(number, [_load(0), (_JUMP_EQUAL, 0, len(itself), kind), *itself, (_RETURN, 0, 0, _DENY)])
    return program


def _rule(value: int, steps: Sequence[_Instruction]) -> list[_Instruction]:
    """Take `steps`, which end with a verdict, where what was loaded is `value`; else go on behind them."""
    return [(_JUMP_EQUAL, 0, len(steps), value), *steps]


def _unless_equal(value: int, otherwise: int, verdict: int) -> list[_Instruction]:
    """`verdict` where what was loaded is `value`, else `otherwise`."""
    return [*_rule(value, [(_RETURN, 0, 0, verdict)]), (_RETURN, 0, 0, otherwise)]


def _load(argument: int) -> _Instruction:
    """The lower half of an argument: all there is of an int."""
    return (_LOAD, 0, 0, _ARGUMENTS + argument * _ARGUMENT_BYTES)
