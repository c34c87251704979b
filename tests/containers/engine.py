"""The container engine of this machine: docker, or podman with a socket that answers as docker's does."""

import contextlib
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from infra.local.servers import stop_process

REPOSITORY = Path(__file__).resolve().parents[2]
STAND_INS = {"postgres": "stowage-test/postgres:1", "s3": "stowage-test/s3:1"}
"""Images that are made here, by the folder of their Containerfile."""

_SOCKET_SECONDS = 20.0


class NoEngine(Exception):
    """There is no container engine that can be used here; the message says what was looked for."""


@dataclass(frozen=True)
class Engine:
    """The program of an engine, and the environment that leads every docker client to it."""

    program: str
    environment: Mapping[str, str] = field(default_factory=dict)

    @property
    def is_podman(self) -> bool:
        return self.program == "podman"

    def run(self, *arguments: str, **environment: str) -> str:
        """What a command of the engine prints; its errors are raised with what it said."""
        return run([self.program, *arguments], {**self.environment, **environment})

    def build(self, folder: str, tag: str) -> None:
        """Make an image of a Containerfile below this folder."""
        options = ("--pull=missing", "--format=docker") if self.is_podman else ()
        containerfile = REPOSITORY / "tests/containers" / folder / "Containerfile"
        self.run("build", *options, "--quiet", "--tag", tag, "--file", str(containerfile), str(REPOSITORY))

    def name_of(self, tag: str) -> str:
        """How an image that was made here is called: podman puts its own host before the name."""
        return f"localhost/{tag}" if self.is_podman else tag


@contextlib.contextmanager
def engine() -> Iterator[Engine]:
    """Docker where its engine answers, else podman, whose socket is served while the context is open."""
    if shutil.which("docker") and subprocess.run(["docker", "info"], capture_output=True, check=False).returncode == 0:
        yield Engine("docker")
    elif shutil.which("podman"):
        with tempfile.TemporaryDirectory(prefix="stowage-podman-") as folder:
            socket = Path(folder) / "podman.sock"
            with (Path(folder) / "log").open("wb") as log:
                command = ["podman", "system", "service", "--time=0", f"unix://{socket}"]
                process = subprocess.Popen(command, stderr=log, start_new_session=True)
            try:
                _until_there(socket, process)
                yield Engine("podman", {"DOCKER_HOST": f"unix://{socket}"})
            finally:
                stop_process(process)
    else:
        raise NoEngine("No docker engine answers, and podman is not installed. One of them is needed.")


def run(command: Sequence[str], environment: Mapping[str, str] | None = None) -> str:
    """What a program prints; RuntimeError with what it said, when it fails."""
    done = subprocess.run(
        command,
        cwd=REPOSITORY,
        env={**os.environ, **(environment or {})},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with {done.returncode}:\n{done.stdout}{done.stderr}")
    return done.stdout


def _until_there(socket: Path, process: "subprocess.Popen[bytes]") -> None:
    deadline = time.monotonic() + _SOCKET_SECONDS
    while not socket.exists():
        if process.poll() is not None or time.monotonic() > deadline:
            raise NoEngine(f"podman did not serve {socket}")
        time.sleep(0.05)
