"""A directory with the credentials of an installation: what is missing is made up, what is there stays.

    admin/token
    registry/{database-url,s3-access-key,s3-secret-key,audit.pem}
    builder/{database-url,s3-access-key,s3-secret-key,token}
    runner/{database-url,s3-access-key,s3-secret-key,token}

Each service gets its own part, and reads it by `STOWAGE_…_FILE`.
"""

import os
import secrets
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

from infra.provision.server import Credentials

SERVICES = ("registry", "builder", "runner")


class CredentialFiles:
    """The credentials in one directory, whose parts may be volumes that are mounted there."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        for part in ("admin", *SERVICES):
            (directory / part).mkdir(mode=0o700, parents=True, exist_ok=True)

    @property
    def audit_key(self) -> Path:
        """The key that signs the audit trail; whoever needs it makes it."""
        return self._directory / "registry" / "audit.pem"

    def token(self, subject: str) -> Path:
        """The token of the administrator or a service; whoever needs it makes it."""
        return self._directory / subject / "token"

    def s3(self, service: str) -> Credentials:
        """The keys of a service on the S3 server."""
        return Credentials(
            self._read_or_make(f"{service}/s3-access-key", lambda: f"stowage{service}"),
            self._read_or_make(f"{service}/s3-secret-key", _secret),
        )

    def database_url(self, service: str, administrator_url: str, role: str, database: str) -> str:
        """Where a service finds its database: on the administrator's server, as a role that all services share."""
        parts = urlsplit(administrator_url)
        host = parts.netloc.rpartition("@")[2]
        password = self._read_or_make("registry/database-password", _secret)
        url = parts._replace(netloc=f"{role}:{password}@{host}", path=f"/{database}").geturl()
        path = self._directory / service / "database-url"
        if not path.exists() or path.read_text().strip() != url:
            _write(path, url)
        return url

    def _read_or_make(self, name: str, make: Callable[[], str]) -> str:
        path = self._directory / name
        if not path.exists():
            _write(path, make())
        return path.read_text().strip()


def _secret() -> str:
    return secrets.token_urlsafe(24)


def _write(path: Path, content: str) -> None:
    """Write a file that only its owner may read, whole or not at all."""
    draft = path.with_name(f".{path.name}.draft")
    draft.unlink(missing_ok=True)
    with open(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:  # noqa: PTH123  # os.open sets the mode
        file.write(f"{content}\n")
    draft.replace(path)
