"""Platforms: what a native file needs, and what this machine offers."""

from __future__ import annotations

import functools
import os
import platform as system_platform
import struct
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Self

_MACHINES = {
    "x86_64": "x64",
    "amd64": "x64",
    "i386": "ia32",
    "i686": "ia32",
    "aarch64": "arm64",
    "arm64": "arm64",
    "armv6l": "arm",
    "armv7l": "arm",
    "ppc64": "ppc64",
    "ppc64le": "ppc64",
    "s390x": "s390x",
    "riscv64": "riscv64",
    "loongarch64": "loong64",
}
_NARROW = {"x64": "ia32", "arm64": "arm"}


@dataclass(frozen=True, slots=True, order=True)
class Platform:
    """What a native file needs, or what a machine offers.

    `os` and `arch` are Node's names (`linux`, `darwin`, `win32`; `x64`, `arm64`). `libc` is `glibc`, `musl` or "": none
    is needed, or the system has only one. `str()` gives `linux/x64/glibc`, `darwin/arm64`.
    """

    os: str
    arch: str
    libc: str = ""

    def __str__(self) -> str:
        return "/".join(part for part in (self.os, self.arch, self.libc) if part)

    @classmethod
    def parse(cls, text: str) -> Self:
        """The platform that `str()` wrote so. ValueError for anything else."""
        parts = text.split("/")
        if len(parts) not in (2, 3) or not all(part.isascii() and part.isalnum() for part in parts):
            raise ValueError(f"{text!r} is not a platform; expected os/arch or os/arch/libc, as in linux/x64/glibc")
        return cls(*parts)

    def runs_on(self, host: Platform) -> bool:
        """Whether a file that needs this platform can be loaded on `host`."""
        return (self.os, self.arch) == (host.os, host.arch) and self.libc in ("", host.libc)


@functools.cache
def host_platform() -> Platform:
    """The platform of this process; also that of its children, as long as they come from the same image."""
    machine = system_platform.machine().lower()
    arch = _MACHINES.get(machine, machine)
    if struct.calcsize("P") == 4:
        arch = _NARROW.get(arch, arch)
    name = sys.platform.rstrip("0123456789") if sys.platform.startswith("freebsd") else sys.platform
    return Platform(name, arch, _host_libc() if name == "linux" else "")


def _host_libc() -> str:
    """Which C library this process runs on: glibc says so itself, and only musl has a loader of this name."""
    try:
        version = os.confstr("CS_GNU_LIBC_VERSION")
    except (ValueError, OSError):
        version = None
    if version and version.startswith("glibc"):
        return "glibc"
    return "musl" if any(Path("/lib").glob("ld-musl-*.so.1")) else ""
