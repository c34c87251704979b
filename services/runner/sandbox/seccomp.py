"""The system calls that no job needs, as a filter for seccomp(2) (classic BPF, see linux/filter.h).

What is not named here stays allowed: the filter takes away what reaches beyond a process — other processes' memory,
mounts, namespaces, the kernel's configuration — and the parts of the kernel in which holes are found again and again.
It works alike under bubblewrap, which loads it itself, and in `init.py`.
"""

import errno
import platform
import socket
import struct
from dataclasses import dataclass
from typing import Final

_LOAD, _JUMP_EQUAL, _JUMP_GREATER_EQUAL, _JUMP_SET, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_NUMBER, _ARCHITECTURE, _FIRST_ARGUMENT = 0, 4, 16  # offsets in struct seccomp_data, little endian
_ALLOW, _ERRNO, _KILL_PROCESS = 0x7FFF0000, 0x00050000, 0x80000000
_X32_BIT = 0x40000000  # the second x86-64 ABI, whose numbers would pass the table
_NEW_NAMESPACES = 0x7E020000  # CLONE_NEWCGROUP … CLONE_NEWNET and CLONE_NEWNS in the flags of clone(2)


@dataclass(frozen=True, slots=True)
class _Architecture:
    audit: int
    clone: int
    clone3: int
    socket: int
    denied: tuple[int, ...]


# Numbers from asm/unistd_64.h and asm-generic/unistd.h.
_ARCHITECTURES: Final = {
    "x86_64": _Architecture(
        audit=0xC000003E,
        clone=56,
        clone3=435,
        socket=41,
        denied=(
            *(101, 310, 311, 438, 312, 440),  # ptrace, process_vm_readv/writev, pidfd_getfd, kcmp, process_madvise
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
        ),
    ),
    "aarch64": _Architecture(
        audit=0xC00000B7,
        clone=220,
        clone3=435,
        socket=198,
        denied=(
            *(117, 270, 271, 438, 272, 440),
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
        ),
    ),
}


def is_supported() -> bool:
    """Whether there is a filter for this machine's processor."""
    return platform.machine() in _ARCHITECTURES


def build_filter(allowed_sockets: tuple[socket.AddressFamily, ...]) -> bytes:
    """The filter as `struct sock_filter[]`. Sockets of other families than `allowed_sockets` can't be made.

    Denied calls fail with EPERM; clone3(2), whose flags a filter can't see, with ENOSYS, so that the C library takes
    clone(2). A process that calls for another architecture is killed.
    """
    machine = _ARCHITECTURES[platform.machine()]
    program = [
        (_LOAD, 0, 0, _ARCHITECTURE),
        (_JUMP_EQUAL, 1, 0, machine.audit),
        (_RETURN, 0, 0, _KILL_PROCESS),
        (_LOAD, 0, 0, _NUMBER),
        (_JUMP_GREATER_EQUAL, 0, 1, _X32_BIT),
        (_RETURN, 0, 0, _ERRNO | errno.EPERM),
        (_JUMP_EQUAL, 0, 1, machine.clone3),
        (_RETURN, 0, 0, _ERRNO | errno.ENOSYS),
    ]
    for number in machine.denied:
        program += [(_JUMP_EQUAL, 0, 1, number), (_RETURN, 0, 0, _ERRNO | errno.EPERM)]
    program += [
        (_JUMP_EQUAL, 0, 4, machine.clone),
        (_LOAD, 0, 0, _FIRST_ARGUMENT),
        (_JUMP_SET, 0, 1, _NEW_NAMESPACES),
        (_RETURN, 0, 0, _ERRNO | errno.EPERM),
        (_RETURN, 0, 0, _ALLOW),
        (_JUMP_EQUAL, 0, 2 + 2 * len(allowed_sockets), machine.socket),
        (_LOAD, 0, 0, _FIRST_ARGUMENT),
    ]
    for family in allowed_sockets:
        program += [(_JUMP_EQUAL, 0, 1, int(family)), (_RETURN, 0, 0, _ALLOW)]
    program += [(_RETURN, 0, 0, _ERRNO | errno.EACCES), (_RETURN, 0, 0, _ALLOW)]
    return b"".join(struct.pack("=HBBI", *instruction) for instruction in program)
