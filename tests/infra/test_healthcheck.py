"""The program by which containers ask their service how it is."""

import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from tests.containers.engine import REPOSITORY
from tests.ports import free_port


class _Service(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response({"/livez": 200, "/readyz": 503}[self.path])
        self.end_headers()

    def log_message(self, *_arguments: object) -> None:
        """Say nothing."""


@pytest.fixture
def port() -> Iterator[int]:
    """Of a service that lives and is not ready."""
    with HTTPServer(("127.0.0.1", free_port()), _Service) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server.server_port
        server.shutdown()
        thread.join()


def test_service_that_lives_is_healthy_and_one_that_is_not_ready_is_not(port: int) -> None:
    assert _ask(port).returncode == 0
    assert _ask(port, "/readyz").returncode == 1


def test_nobody_there_is_not_healthy() -> None:
    done = _ask(free_port())
    assert done.returncode == 1
    assert "refused" in done.stderr


def _ask(port: int, *path: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-I", str(REPOSITORY / "infra/images/healthcheck.py"), str(port), *path]
    return subprocess.run(command, capture_output=True, text=True, check=False)
