"""What a run leaves in `outputs/`: found, and described."""

import mimetypes
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from services.runner.endings import RunFailed

_MAX_PATH_BYTES = 900  # keys have 1024 at most, and begin with the run's id

_TYPES = mimetypes.MimeTypes()
for _type, _suffix in (
    ("application/geo+json", ".geojson"),
    ("application/vnd.apache.parquet", ".parquet"),
    ("application/x-ndjson", ".ndjson"),
    ("application/yaml", ".yaml"),
    ("application/yaml", ".yml"),
    ("text/markdown", ".md"),
    ("text/plain", ".log"),
):
    _TYPES.add_type(_type, _suffix)


@dataclass(frozen=True, slots=True)
class OutputLimits:
    """How much a run may leave."""

    max_files: int
    max_bytes: int


@dataclass(frozen=True, slots=True)
class FoundOutput:
    """A regular file below `outputs/`."""

    path: str
    size: int


@dataclass(frozen=True, slots=True)
class FoundOutputs:
    """The regular files, in order, and the paths of what is neither file nor directory."""

    files: list[FoundOutput]
    skipped: list[str]


def find_outputs(directory: Path, limits: OutputLimits) -> FoundOutputs:
    """What is below `directory`. No symbolic link is followed. Blocks.

    RunFailed when there is more than the limits allow, or a name that can't be a key.
    """
    if Path(os.path.realpath(directory)) != directory:
        raise RunFailed(
            "output_unreadable", "The directory for outputs was replaced by a link; nothing was taken from it."
        )
    try:
        return _find(directory, limits)
    except OSError as error:
        raise RunFailed("output_unreadable", f"The outputs could not be listed: {error.strerror}.") from error


def _find(directory: Path, limits: OutputLimits) -> FoundOutputs:
    found: list[FoundOutput] = []
    skipped: list[str] = []
    total = 0
    for path, entry in _walk(directory, ""):
        kind = entry.stat(follow_symlinks=False)
        if not stat.S_ISREG(kind.st_mode):
            skipped.append(path)
            continue
        require_key(path)
        total += kind.st_size
        found.append(FoundOutput(path, kind.st_size))
        if len(found) > limits.max_files:
            raise RunFailed("outputs_too_many", f"The run left more than {limits.max_files} files, which is the limit.")
        if total > limits.max_bytes:
            raise RunFailed(
                "outputs_too_large", f"The files that the run left have more than {limits.max_bytes} bytes, the limit."
            )
    return FoundOutputs(sorted(found, key=lambda output: output.path), skipped)


def content_type_of(path: str) -> str:
    """The media type that a file's name suggests."""
    guessed, encoding = _TYPES.guess_type(path)
    if encoding is not None or guessed is None:
        return {"gzip": "application/gzip"}.get(encoding or "", "application/octet-stream")
    return guessed


def _walk(directory: Path, prefix: str) -> Iterator[tuple[str, os.DirEntry[str]]]:
    waiting = [(os.fspath(directory), prefix)]
    while waiting:
        place, above = waiting.pop()
        with os.scandir(place) as entries:
            for entry in entries:
                path = f"{above}{entry.name}"
                if entry.is_dir(follow_symlinks=False):
                    waiting.append((entry.path, f"{path}/"))
                else:
                    yield path, entry


def require_key(path: str) -> None:
    """Raise RunFailed unless `path`, relative to `outputs/`, can be a part of a key."""
    shown = path.encode("utf-8", "backslashreplace").decode()[:200]
    if not path.isprintable():
        raise RunFailed(
            "output_name", f"The name of the output {shown!r} has characters that can't be shown. Rename it."
        )
    if len(path.encode()) > _MAX_PATH_BYTES:
        raise RunFailed("output_name", f"The path of the output {shown}… is longer than {_MAX_PATH_BYTES} bytes.")


def open_output(path: Path) -> BinaryIO:
    """An output as it is there: a file, not a link, and without waiting where it is a pipe."""
    return os.fdopen(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC), "rb")
