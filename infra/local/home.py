"""The one folder in which an embedded stack keeps its state, and the secrets that it makes for itself."""

import contextlib
import fcntl
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from infra.local.servers import new_secret
from infra.provision.policies import RIGHTS
from infra.provision.server import Credentials

_REPOSITORY = Path(__file__).resolve().parents[2]


class StackRunning(Exception):
    """Another stack uses this folder."""


class Secrets(BaseModel):
    """What the stack made up on its first start."""

    model_config = ConfigDict(frozen=True)

    s3_access_key: str
    s3_secret_key: str
    s3_console_password: str
    s3_secret_keys: dict[str, str] = {}
    """Of the services, by name."""

    def s3_credentials(self, service: str) -> Credentials:
        """The keys of a service on the S3 server."""
        return Credentials(f"stowage{service}", self.s3_secret_keys[service])


class StackInfo(BaseModel):
    """`stack.json`: where everything is, for scripts; there only while the stack is up."""

    model_config = ConfigDict(frozen=True)

    registry: str
    builder: str
    runner: str
    s3: dict[str, str]
    database: str
    tokens: dict[str, str]
    pid: int


class Home:
    """The folder: `STOWAGE_HOME`, or `.stowage` in the source tree."""

    def __init__(self, path: Path | None = None) -> None:
        self.path = (path or Path(os.environ.get("STOWAGE_HOME") or _REPOSITORY / ".stowage")).resolve()
        self.postgres = self.path / "postgres"
        self.s3 = self.path / "s3"
        self.logs = self.path / "logs"
        self.tokens = self.path / "tokens"
        self.audit_key = self.path / "audit.pem"
        self.demo = self.path / "demo"
        self._stack_file = self.path / "stack.json"

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the folder for one stack, or raise StackRunning. The lock ends with the process, however it ends."""
        for folder in (self.path, self.logs, self.tokens):
            folder.mkdir(parents=True, exist_ok=True)
        self.tokens.chmod(0o700)
        with (self.path / "lock").open("a") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise StackRunning(
                    f"a stack is already running in {self.path}. Use that one, or stop it first with Ctrl-C where it "
                    "was started; STOWAGE_HOME=… together with STOWAGE_PORT_BASE=… starts a second one beside it."
                ) from None
            try:
                yield
            finally:
                self._stack_file.unlink(missing_ok=True)

    def secrets(self) -> Secrets:
        """The stack's secrets; made on first use."""
        path = self.path / "secrets.json"
        if path.exists():
            there = Secrets.model_validate_json(path.read_bytes())
        else:
            there = Secrets(s3_access_key="stowage", s3_secret_key=new_secret(), s3_console_password=new_secret())
        keys = {service: new_secret() for service in RIGHTS} | there.s3_secret_keys
        made = there.model_copy(update={"s3_secret_keys": keys})
        if made != there:
            _write_private(path, made.model_dump())
        return made

    def write_stack(self, info: StackInfo) -> None:
        """Say where everything is."""
        _write_private(self._stack_file, info.model_dump())

    def running_stack(self) -> StackInfo | None:
        """Where everything is, if a stack is up in this folder."""
        try:
            info = StackInfo.model_validate_json(self._stack_file.read_bytes())
        except (FileNotFoundError, ValidationError):
            return None
        return info if _alive(info.pid) else None


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _write_private(path: Path, content: dict[str, Any]) -> None:
    """Write JSON that only its owner may read, whole or not at all."""
    draft = path.with_suffix(".draft")
    draft.unlink(missing_ok=True)
    with open(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:  # noqa: PTH123  # os.open sets the mode
        json.dump(content, file, indent=2)
    draft.replace(path)
