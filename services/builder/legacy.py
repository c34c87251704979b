"""What the system before this one left on disks: caches of bundles, and of what they unpack to."""

import os
import shutil
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

_FIXED = (
    PurePosixPath("services/catalog/data/example-bundles"),
    PurePosixPath("services/catalog/data/job-bundles"),
)
_ANYWHERE = "bundle-runtime-cache"
_NOT_LOOKED_INTO = frozenset({".git"})  # a branch may be called as a cache is; its folder is none
_DIRECTORY_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW


@dataclass(frozen=True, slots=True)
class LegacyCache:
    """A directory that nothing reads any more. `path` is relative to the root, `size` is in bytes."""

    path: PurePosixPath
    files: int
    size: int


@dataclass(slots=True)
class Findings:
    """What was found. `refused` are links where a cache would be: they are neither followed nor removed."""

    caches: list[LegacyCache] = field(default_factory=list)
    refused: list[PurePosixPath] = field(default_factory=list)


def find_caches(root: Path) -> Findings:
    """Every cache below `root`, which may itself be reached by a link; below it no link is followed."""
    findings = Findings()
    for path in _FIXED:
        for depth in range(1, len(path.parts) + 1):
            part = PurePosixPath(*path.parts[:depth])
            if (root / part).is_symlink():
                _add(findings.refused, part)
                break
            if not (root / part).is_dir():
                break
        else:
            findings.caches.append(_measure(root, path))
    for path, is_link in _named(root):
        if is_link:
            _add(findings.refused, path)
        elif not any(path.is_relative_to(cache.path) for cache in findings.caches):
            findings.caches.append(_measure(root, path))
    return findings


def delete_cache(root: Path, cache: LegacyCache) -> None:
    """Delete a cache; raises OSError, also when a part of its path has become a link."""
    directory = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
    try:
        for part in cache.path.parent.parts:
            below = os.open(part, _DIRECTORY_FLAGS, dir_fd=directory)
            os.close(directory)
            directory = below
        shutil.rmtree(cache.path.name, dir_fd=directory)
    finally:
        os.close(directory)


def _named(root: Path) -> Iterator[tuple[PurePosixPath, bool]]:
    for directory, names, _ in os.walk(root):
        names[:] = sorted(name for name in names if name not in _NOT_LOOKED_INTO)
        if _ANYWHERE in names:
            names.remove(_ANYWHERE)
            path = Path(directory, _ANYWHERE)
            yield PurePosixPath(path.relative_to(root)), path.is_symlink()


def _measure(root: Path, path: PurePosixPath) -> LegacyCache:
    files = size = 0
    for directory, _, names in os.walk(root / path):
        for name in names:
            status = Path(directory, name).lstat()
            files += 1
            size += status.st_size if stat.S_ISREG(status.st_mode) else 0
    return LegacyCache(path, files, size)


def _add(paths: list[PurePosixPath], path: PurePosixPath) -> None:
    if path not in paths:
        paths.append(path)
