"""Where the values of secrets come from. A run is given those that its job declares, when it starts, and no others.

Values are never stored: they go to the job over its control channel, and into the mask that keeps them out of what the
job says.
"""

import asyncio
import errno
import os
import re
import stat
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

from libs.common.models import SECRET_NAME
from services.runner.endings import RunFailed

ENVIRONMENT_PREFIX = "STOWAGE_SECRET_"
MAX_SECRET_BYTES = 64 * 1024

_NAME = re.compile(SECRET_NAME)


class SecretUnreadable(Exception):
    """A provider has a secret, or may have it, and can't give it; the message says why, and never the value."""


class SecretProvider(Protocol):
    """Somewhere that secrets are kept. Asked anew for each run, so that a value can be rotated."""

    async def get(self, name: str) -> str | None:
        """The value of a secret, None where there is none of that name; SecretUnreadable."""

    def place(self, name: str) -> str:
        """Where it looks for a secret, to complete the sentence “it was looked for in …”."""


class EnvironmentSecrets:
    """Variables of the runner's own environment: `db-password` is STOWAGE_SECRET_DB_PASSWORD."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._environment = environment

    async def get(self, name: str) -> str | None:
        return self._environment.get(_variable(name))

    def place(self, name: str) -> str:
        return f"the runner's environment variable {_variable(name)}"


class DirectorySecrets:
    """Files of a directory, one a secret, as Kubernetes mounts them. One line break at the end is not of the value."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    async def get(self, name: str) -> str | None:
        return await asyncio.to_thread(self._read, name)

    def place(self, name: str) -> str:
        return f"the file {self._directory / name}"

    def _read(self, name: str) -> str | None:
        if not _NAME.fullmatch(name):
            return None
        try:
            # Links are followed: Kubernetes replaces all files at once by turning one.
            data = _read_file(self._directory / name)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise SecretUnreadable(f"{self.place(name)} can't be read: {error.strerror}") from None
        if len(data) > MAX_SECRET_BYTES:
            raise SecretUnreadable(f"{self.place(name)} is larger than {MAX_SECRET_BYTES} bytes, which is the limit")
        try:
            text = data.decode()
        except UnicodeDecodeError:
            raise SecretUnreadable(f"{self.place(name)} is not UTF-8 text; keep it as base64") from None
        return text.removesuffix("\n").removesuffix("\r")


async def resolve(names: Iterable[str], providers: Sequence[SecretProvider]) -> dict[str, str]:
    """The value of each secret, from the first provider that has it. RunFailed where none has, or one can't say."""
    return {name: await _resolve(name, providers) for name in names}


async def _resolve(name: str, providers: Sequence[SecretProvider]) -> str:
    for provider in providers:
        try:
            value = await provider.get(name)
        except SecretUnreadable as error:
            raise RunFailed("secret_unreadable", f"The secret “{name}”, which the job declares: {error}.") from None
        if value is not None:
            return value
    places = " and ".join(provider.place(name) for provider in providers)
    raise RunFailed(
        "secret_missing",
        f"The secret “{name}”, which the job declares, does not exist: it was looked for in {places}. Provide it "
        "there, or take its name out of the job's “secrets”.",
    )


def _variable(name: str) -> str:
    return ENVIRONMENT_PREFIX + re.sub(r"[.-]", "_", name).upper()


def _read_file(path: Path) -> bytes:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "it is no regular file")
        with os.fdopen(descriptor, "rb", closefd=False) as file:
            return file.read(MAX_SECRET_BYTES + 1)
    finally:
        os.close(descriptor)
