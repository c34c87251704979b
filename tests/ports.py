"""Ports for servers that are told theirs before they start.

Between the choice and the server's own bind, another test's server or client may get the same port from the kernel. So
these lie below what the kernel hands out by itself, and each worker of a parallel test run has a range of its own.
"""

import itertools
import os
import random
import socket
from dataclasses import fields

from infra.local.ports import Ports

_FIRST = 10_000
_PER_WORKER = 600
_WORKERS = 16  # those of more workers share; ends at 19,600, below the stacks of tests/e2e and the kernel's own range


def _range() -> range:
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")) % _WORKERS
    start = _FIRST + worker * _PER_WORKER
    return range(start, start + _PER_WORKER)


def _from_anywhere() -> list[int]:
    """The worker's ports, from a random one on: two test runs on one machine should not go side by side."""
    ports = list(_range())
    start = random.randrange(len(ports))  # noqa: S311  # nothing secret about it
    return ports[start:] + ports[:start]


_ports = itertools.cycle(_from_anywhere())


def free_port() -> int:
    """A port of the loopback interface that nobody listens on, and that no other worker of this test run is given."""
    for port in itertools.islice(_ports, _PER_WORKER):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        return port
    raise RuntimeError(f"no free port among {_range()}")


def stack_ports() -> Ports:
    """Free ports for the parts of a stack."""
    return Ports(*(free_port() for _ in fields(Ports)))
