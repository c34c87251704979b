"""A project of Compose with the stack of infra/compose.yaml in it, on ports of its own."""

import contextlib
import json
import secrets
import shutil
import subprocess
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from tests.containers.engine import Engine, NoEngine, run
from tests.ports import free_port

SERVICES = ("registry", "builder", "runner")
_CHECKED = ("postgres", *SERVICES)
_READY_SECONDS = 180.0


@dataclass(frozen=True)
class Project:
    """A project: its variables, the administrators' passwords, and where its services listen."""

    engine: Engine
    images: Mapping[str, str]
    name: str = field(default_factory=lambda: f"stowage-test-{secrets.token_hex(3)}")
    passwords: Mapping[str, str] = field(
        default_factory=lambda: {
            name: f"{secrets.token_hex(16)}/?#@:%&" for name in ("POSTGRES_PASSWORD", "S3_ROOT_PASSWORD")
        }
    )
    ports: Mapping[str, int] = field(
        default_factory=lambda: {
            name: free_port() for name in ("REGISTRY_PORT", "BUILDER_PORT", "RUNNER_PORT", "S3_PORT", "S3_CONSOLE_PORT")
        }
    )

    def compose(self, *arguments: str) -> str:
        """What a command of Compose prints."""
        return run(
            [*_program(), "--file", "infra/compose.yaml", "--project-name", self.name, *arguments], self._variables
        )

    @property
    def _variables(self) -> dict[str, str]:
        ports = {name: str(port) for name, port in self.ports.items()}
        return {**self.engine.environment, **self.images, **self.passwords, **ports}

    def url(self, service: str) -> str:
        """Where a service listens."""
        return f"http://127.0.0.1:{self.ports[f'{service.upper()}_PORT']}"

    def inspect(self, service: str) -> dict[str, Any]:
        """What the engine knows of the container of a service."""
        found: list[dict[str, Any]] = json.loads(self.engine.run("inspect", self._running(service)))
        return found[0]

    def _running(self, service: str) -> str:
        return self.compose("ps", "--quiet", service).split()[0]

    @contextlib.contextmanager
    def checked(self) -> Iterator[None]:
        """Health checks while the context is open: podman leaves them to systemd, which CI may not have."""
        if not self.engine.is_podman:
            yield
            return
        stop = threading.Event()

        def check() -> None:
            while not stop.wait(1):
                for service in _CHECKED:
                    with contextlib.suppress(RuntimeError, IndexError):
                        self.engine.run("healthcheck", "run", self._running(service))

        thread = threading.Thread(target=check)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()

    def until_ready(self) -> None:
        """Return when all services say that they are ready."""
        deadline = time.monotonic() + _READY_SECONDS
        waiting = list(SERVICES)
        while waiting:
            if _is_ready(self.url(waiting[0])):
                waiting.pop(0)
                continue
            if time.monotonic() > deadline:
                raise RuntimeError(f"{', '.join(waiting)} not ready:\n{self.compose('logs', '--tail=30', *waiting)}")
            time.sleep(0.5)


def _is_ready(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/readyz", timeout=5) as answer:  # noqa: S310  # our own loopback URL
            return bool(answer.status == 200)
    except (OSError, urllib.error.HTTPError):
        return False


def _program() -> list[str]:
    """The Compose of this machine."""
    if shutil.which("docker"):
        plugin = ["docker", "compose"]
        if subprocess.run([*plugin, "version"], capture_output=True, check=False).returncode == 0:
            return plugin
    if shutil.which("docker-compose"):
        return ["docker-compose"]
    raise NoEngine(
        "Neither `docker compose` nor docker-compose is installed. Debian's package docker-compose is enough."
    )
