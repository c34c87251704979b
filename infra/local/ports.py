"""Which port is whose on one machine: all of them follow from one base."""

import errno
import socket
from dataclasses import dataclass, fields
from typing import Self

DEFAULT_BASE = 7100


class PortTaken(Exception):
    """A port that the stack needs is in use."""


@dataclass(frozen=True, slots=True)
class Ports:
    """The ports of a stack; the ones of the S3 server's parts are of no interest to people."""

    registry: int
    builder: int
    runner: int
    s3: int
    s3_console: int
    s3_grpc: int
    s3_console_grpc: int
    s3_master: int
    s3_master_grpc: int
    s3_volume: int
    s3_volume_grpc: int
    s3_filer: int
    s3_filer_grpc: int

    @classmethod
    def from_base(cls, base: int) -> Self:
        """Consecutive ports: the registry on `base` + 1, the builder on + 2, the runner on + 3, S3 on + 4 …"""
        return cls(*range(base + 1, base + 1 + len(fields(cls))))

    def check(self) -> None:
        """Raise PortTaken naming the first port that is in use, what it is for, and what to do."""
        for field in fields(self):
            port = getattr(self, field.name)
            with socket.socket() as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                try:
                    probe.bind(("127.0.0.1", port))
                except OSError as error:
                    if error.errno not in (errno.EADDRINUSE, errno.EACCES):
                        raise
                    raise PortTaken(
                        f"port {port} on 127.0.0.1, meant for {field.name.replace('_', ' ')}, is in use. Stop what "
                        "listens there (another stack?), or choose other ports: STOWAGE_PORT_BASE=7200 make …"
                    ) from None
