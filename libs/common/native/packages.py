"""Whether a bundle can run on a platform, judged by its packages (docs/decisions/0004).

Packages may ship the same code for several platforms and choose when they are loaded, so native files are taken
together by the package that holds them: one that can be loaded is enough.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import PurePosixPath

from libs.common.native.platforms import Platform

NativeMember = tuple[str, str]
"""The path of a native file in its bundle, and the platform that it needs, as text."""


def by_package(native: Iterable[NativeMember]) -> list[list[NativeMember]]:
    """The native files of a bundle, those of one package together."""
    packages: dict[str, list[NativeMember]] = {}
    for member in native:
        packages.setdefault(package_of(member[0]), []).append(member)
    return list(packages.values())


def can_load(package: Iterable[NativeMember], host: Platform) -> bool:
    """Whether one of these files can be loaded on `host`."""
    return any(_runs(platform, host) for _, platform in package)


def package_of(path: str) -> str:
    """The npm package directory that holds a member, "" for the bundle itself: `node_modules/@duckdb/node-api`."""
    parts = PurePosixPath(path).parts[:-1]
    for index in range(len(parts) - 1, -1, -1):
        if parts[index] == "node_modules":
            names = 2 if parts[index + 1 : index + 2] and parts[index + 1].startswith("@") else 1
            return "/".join(parts[: index + 1 + names])
    return ""


def _runs(platform: str, host: Platform) -> bool:
    try:
        return Platform.parse(platform).runs_on(host)
    except ValueError:
        return False
