"""What is said of a version that is no longer offered, by the registry and by runners."""

from datetime import datetime
from typing import Protocol

from libs.common.models import rfc3339


class Standing(Protocol):
    """A version with its status; reason, actor and time are None while it is active."""

    @property
    def slug(self) -> str: ...
    @property
    def version(self) -> str: ...
    @property
    def status(self) -> str: ...
    @property
    def status_reason(self) -> str | None: ...
    @property
    def status_by(self) -> str | None: ...
    @property
    def status_at(self) -> datetime | None: ...


def told(version: Standing) -> str:
    """A sentence: `hello@1.0.0 was yanked by “alice” at 2026-11-23T04:00:00.000Z: “it deletes its input”.`"""
    actor = f" by “{version.status_by}”" if version.status_by else ""
    moment = f" at {rfc3339(version.status_at)}" if version.status_at else ""
    reason = f": “{version.status_reason}”" if version.status_reason else ""
    return f"{version.slug}@{version.version} was {version.status}{actor}{moment}{reason}."
