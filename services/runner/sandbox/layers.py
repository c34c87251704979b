"""The words of confinement: levels, the layers they consist of, and what a job sees."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Protocol

from services.runner.scratch import RunDirectory

HARNESSES = Path(__file__).parents[1] / "harness"

CONFIGURATION = (
    *("/etc/ld.so.cache", "/etc/localtime", "/etc/alternatives", "/etc/ca-certificates"),
    *("/etc/ssl/certs", "/etc/ssl/cert.pem", "/etc/ssl/openssl.cnf", "/etc/pki/ca-trust"),
    *("/etc/pki/tls/certs", "/etc/pki/tls/cert.pem", "/etc/pki/tls/openssl.cnf"),
)
"""What programs read of the system's configuration. Private keys lie beside certificates: never a whole /etc/ssl."""

NETWORK_CONFIGURATION = ("/etc/resolv.conf", "/etc/hosts", "/etc/nsswitch.conf", "/etc/services", "/etc/gai.conf")
"""What programs that use the network read besides."""


class Level(StrEnum):
    """How well a job is confined, from the weakest to the strongest."""

    LIMITS = "limits"
    LANDLOCK = "landlock"
    BUBBLEWRAP = "bubblewrap"

    @property
    def rank(self) -> int:
        """The higher, the stronger."""
        return list(Level).index(self)


@dataclass(frozen=True, slots=True)
class Confinement:
    """What holds for one run, as it is recorded."""

    level: Level
    layers: tuple[str, ...]
    network: bool

    def as_record(self) -> dict[str, object]:
        """As JSON."""
        return {"level": self.level.value, "layers": list(self.layers), "network": self.network}


@dataclass(frozen=True, slots=True)
class Program:
    """An interpreter, and the directories besides the system's that it reads."""

    interpreter: Path
    support: tuple[Path, ...] = ()


@dataclass(frozen=True, slots=True)
class Interior:
    """Where the job finds what is its own."""

    interpreter: str
    harnesses: str
    bundle: str
    inputs: str
    outputs: str
    tmp: str
    home: str


@dataclass(frozen=True, slots=True)
class Handshake:
    """Descriptors that the first process inherits: it writes {"child-pid": …} to one and waits for the other."""

    info: int
    block: int


@dataclass(frozen=True, slots=True)
class Wrapped:
    """A command that confines, and descriptors it inherits, which are to be closed when it was started.

    `contained`: in a PID namespace, whose first process the handshake tells of.
    """

    command: Sequence[str]
    descriptors: Sequence[int] = ()
    contained: bool = False


class Sandbox(Protocol):
    """A way to confine a job."""

    level: Level

    def confinement(self, *, network: bool) -> Confinement:
        """What it gives."""

    def interior(self, program: Program, directory: RunDirectory) -> Interior:
        """The job's view of its directory."""

    def wrap(
        self,
        program: Program,
        directory: RunDirectory,
        arguments: Sequence[str],
        handshake: Handshake,
        *,
        network: bool,
    ) -> Wrapped:
        """The command that starts the interpreter of `program` with `arguments`, confined, in the bundle's directory.

        Its exit code is the interpreter's, or 128 + the number of the signal that killed it.
        """


def environment_of(interior: Interior) -> Mapping[str, str]:
    """All that a job sees of the world when it starts. Nothing of the runner's own environment is in it."""
    return {
        "PATH": f"{Path(interior.interpreter).parent}:/usr/local/bin:/usr/bin:/bin",
        "HOME": interior.home,
        "TMPDIR": interior.tmp,
        "LANG": "C.UTF-8",
        "TZ": "UTC",
        "NODE_ENV": "production",
    }
