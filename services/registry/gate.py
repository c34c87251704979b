"""The platform gate: an artifact whose native files keep it from every platform that is allowed is refused at publish.

A pattern is `linux`, `linux/x64` or `linux/x64/glibc`, with the names of a platform, or `any`. An artifact needs one
allowed platform on which it can run; whether it can is judged as the runner judges it, by package.
"""

import re
from collections.abc import Iterable, Iterator, Sequence

from libs.common.errors import InvalidRequest, Unprocessable
from libs.common.native import NativeMember, Platform, by_package, can_load

ANY = "any"

_PATTERN = re.compile(r"[a-z][a-z0-9]{0,19}(/[a-z0-9]{1,20}){0,2}")
_LIBRARIES: tuple[list[str], ...] = ([], ["glibc"], ["musl"])
_ALIASES = {
    "macos": "darwin",
    "osx": "darwin",
    "windows": "win32",
    "amd64": "x64",
    "aarch64": "arm64",
    "i386": "ia32",
    "x86": "ia32",
    "gnu": "glibc",
}
_SHOWN_MEMBERS = 20


class PlatformNotAllowed(Unprocessable):
    """The artifact can run on none of the platforms that are allowed."""

    kind = "platform-not-allowed"


def check_patterns(patterns: Iterable[str]) -> list[str]:
    """The patterns without repetitions, or InvalidRequest naming the one that can't match what it is meant to."""
    found = list(dict.fromkeys(pattern.strip() for pattern in patterns))
    if not found:
        raise InvalidRequest(f"name at least one platform, as in linux/x64, or {ANY}.", kind="invalid-platform")
    for pattern in found:
        _check(pattern)
    return found


def _check(pattern: str) -> None:
    for part in pattern.split("/"):
        if part in _ALIASES:
            raise InvalidRequest(
                f"“{pattern[:60]}” matches no native file: what it calls {part} is {_ALIASES[part]} here.",
                kind="invalid-platform",
            )
    if not _PATTERN.fullmatch(pattern) or pattern.split("/")[2:] not in _LIBRARIES:
        raise InvalidRequest(
            f"“{pattern[:60]}” is no pattern for platforms: use os, os/arch or os/arch/libc with Node.js's names, "
            f"as in linux, linux/x64 and linux/x64/glibc (or musl); or {ANY}.",
            kind="invalid-platform",
        )


def refuse_platforms(subject: str, native: Sequence[NativeMember], allowed: Sequence[str]) -> PlatformNotAllowed | None:
    """Why `subject` can't be published with these native files, or None where it may."""
    foreign = foreign_members(native, allowed)
    if not foreign:
        return None
    path, platform = foreign[0]
    more = f" ({len(foreign)} such members in all)" if len(foreign) > 1 else ""
    return PlatformNotAllowed(
        f"{subject} can run on no platform that is allowed, which are {', '.join(allowed)}: member {path} is for "
        f"{platform}{more}. Build it on an allowed platform: POST /examples/import does that, or run npm ci there and "
        "pack anew. If it is meant for that platform, an administrator can add it to the bundle's allowedPlatforms.",
        member=path,
        members=[{"path": path, "platform": platform} for path, platform in foreign[:_SHOWN_MEMBERS]],
        memberCount=len(foreign),
        allowedPlatforms=list(allowed),
    )


def foreign_members(native: Sequence[NativeMember], allowed: Sequence[str]) -> list[NativeMember]:
    """The native files that keep an artifact from every allowed platform, by path; none where it can run on one."""
    if ANY in allowed:
        return []
    packages = by_package(native)
    hosts = {host for _, needed in native for pattern in allowed for host in _hosts(pattern, needed)}
    if any(all(can_load(package, host) for package in packages) for host in hosts):
        return []
    foreign = [package for package in packages if not any(can_load(package, host) for host in hosts)]
    # Each may be fine on some platform, and all of them together on none.
    return sorted(member for package in foreign or packages for member in package)


def _hosts(pattern: str, needed: str) -> Iterator[Platform]:
    """The machine within `pattern` on which a file that needs `needed` can be loaded, if there is one."""
    try:
        file = Platform.parse(needed)
    except ValueError:
        return
    system, arch, library = (*pattern.split("/"), "", "")[:3]
    host = Platform(system, arch or file.arch, library or file.libc)
    if file.runs_on(host):
        yield host
