"""Ports for servers that are told theirs before they start.

Between the choice and the server's own bind, another test's server or client may get the same port from the kernel. So
these lie below what the kernel hands out by itself, and no two test processes of one machine are given the same: each
holds a lock on the last ports it was given, until it ends.
"""

import fcntl
import os
import random
import socket
import tempfile
from collections import deque
from dataclasses import fields
from pathlib import Path

from infra.local.ports import Ports

_RANGE = range(10_000, 20_000)  # below the stacks of tests/e2e, and below the kernel's own range

_HELD = 64
"""So many locks at most: by then whoever was given the first has long bound it."""

_held: deque[int] = deque()
"""Descriptors of the locks."""


def free_port() -> int:
    """A port of the loopback interface that nobody listens on, and that no other test process is given."""
    locks = Path(tempfile.gettempdir()) / f"stowage-test-ports-{os.getuid()}"
    locks.mkdir(exist_ok=True)
    for port in random.sample(_RANGE, len(_RANGE)):
        lock = os.open(locks / str(port), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        if _taken(lock) or not _is_free(port):
            os.close(lock)
            continue
        _held.append(lock)
        if len(_held) > _HELD:
            os.close(_held.popleft())
        return port
    raise RuntimeError(f"no free port among {_RANGE}")


def stack_ports() -> Ports:
    """Free ports for the parts of a stack."""
    return Ports(*(free_port() for _ in fields(Ports)))


def _taken(lock: int) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    return False


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True
