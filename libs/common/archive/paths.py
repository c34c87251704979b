"""Which names and links an archive may contain, decided with no file system at hand.

One set of rules serves the registry, the builder and the runner, so that what was published can be unpacked.
"""

from __future__ import annotations

from libs.common.archive.types import (
    MAX_NAME_BYTES,
    ArchiveError,
    ArchiveErrorCode,
    ArchiveLimits,
    EntryType,
    quoted,
)

_NO_NAMES = frozenset({"", ".", ".."})
_DIRECTORY = EntryType.DIRECTORY


def _fault(code: ArchiveErrorCode, name: str, message: str, *, limit: str | None = None) -> ArchiveError:
    shown = quoted(name)
    return ArchiveError(code, f"Member {shown} {message}", shown, limit=limit)


def decode_name(raw: bytes, limits: ArchiveLimits) -> str:
    """A name from an archive as text. ArchiveError if it is too long, not UTF-8, or contains NUL."""
    if len(raw) > limits.max_path_bytes:
        raise _fault(
            ArchiveErrorCode.UNSAFE_PATH,
            raw.decode("utf-8", "replace"),
            f"has a path of {len(raw)} bytes; at most {limits.max_path_bytes} are accepted. Shorten it.",
            limit="max_path_bytes",
        )
    try:
        name = raw.decode()
    except UnicodeDecodeError:
        raise _fault(
            ArchiveErrorCode.UNSAFE_PATH,
            raw.decode("utf-8", "backslashreplace"),
            "has a name that is not UTF-8. Rename it.",
        ) from None
    if "\0" in name:
        raise _fault(ArchiveErrorCode.UNSAFE_PATH, name, "has a NUL byte in its name. Rename it.")
    return name


def path_parts(name: str) -> list[str]:
    """The components of a relative path without empty and `.` ones; none for the root. ArchiveError if it is unsafe."""
    if not name:
        raise _fault(ArchiveErrorCode.UNSAFE_PATH, name, "has an empty name. Pack the bundle again.")
    parts = [part for part in name.split("/") if part not in ("", ".")]
    if name.startswith("/"):
        raise _fault(
            ArchiveErrorCode.UNSAFE_PATH,
            name,
            "has an absolute path; a path relative to the bundle's root was expected. Pack with `tar -C DIR .`.",
        )
    if ".." in parts:
        raise _fault(
            ArchiveErrorCode.UNSAFE_PATH,
            name,
            "has `..` in its path; a path below the bundle's root was expected. Pack from the root of the bundle.",
        )
    return parts


def symlink_fault(path: str, target: str, limits: ArchiveLimits) -> str | None:
    """Why the symbolic link at `path` (normalised) may not point to `target`, or None when it may.

    The rule: the target is relative, and `..` occurs only at its start, at most as often as `path` has directories.

    It keeps every chain of links inside. No member lies below a link, so the directory that holds a link is a real one,
    as deep as its path says: the leading `..` climb from a real directory to a real directory, at most to the root.
    From there on the target only descends. If a component it descends through is itself a link, that one starts again
    from the real directory which holds it, under the same rule, and what remains afterwards still only descends. By
    induction on the number of links followed nothing is above the root. (A `..` after a name would break this: what it
    leaves depends on where the name leads.) Links in a circle end in ELOOP.
    """
    if not target:
        return "has an empty target"
    try:
        length = len(target.encode())
    except UnicodeEncodeError:
        return "has a target that is not UTF-8"
    if length > limits.max_path_bytes:
        return f"has a target of more than {limits.max_path_bytes} bytes"
    if "\0" in target:
        return "has a NUL byte in its target"
    if target.startswith("/"):
        return "has an absolute target"
    parts = [part for part in target.split("/") if part not in ("", ".")]
    climbs = 0
    while climbs < len(parts) and parts[climbs] == "..":
        climbs += 1
    if ".." in parts[climbs:]:
        return "has `..` behind a name in its target"
    if climbs > path.count("/"):
        return "leads out of the bundle"
    return None


class Namespace:
    """The names of one archive so far: no duplicates, nothing below what is not a directory, links only inside."""

    def __init__(self, limits: ArchiveLimits) -> None:
        self._limits = limits
        self._directories: dict[str, int] = {"": 0}  # path -> number of components
        self._others: dict[str, EntryType] = {}
        self._entries = 0
        self._path_bytes = 0

    def add(self, raw: bytes, entry_type: EntryType) -> str:
        """Take a member's name as written; its normalised path, "" for the root itself (only as a directory)."""
        name = decode_name(raw, self._limits)
        path = name[2:] if name.startswith("./") else name
        if path.endswith("/"):
            path = path[:-1]
        parent, _, last = path.rpartition("/")
        depth = self._directories.get(parent)
        # A known parent is a path that was checked before, so only the last component is new.
        if depth is None or last in _NO_NAMES or path[0] == "/":
            path, depth = self._add_parents(name)
            if not path:
                return self._add_root(name, entry_type)
            last = path.rpartition("/")[2]
        # A character takes at most four bytes of UTF-8.
        if depth >= self._limits.max_path_depth or len(last) > MAX_NAME_BYTES // 4:
            self._check_component(path, depth)
        self.count(raw)
        if path in self._others or (path in self._directories and entry_type is not _DIRECTORY):
            raise self._duplicate(path)
        if entry_type is _DIRECTORY:
            self._directories[path] = depth + 1
        else:
            self._others[path] = entry_type
        return path

    def symlink_target(self, path: str, raw: bytes) -> str:
        """The checked target of a symbolic link at `path`, as written."""
        target = decode_name(raw, self._limits)
        fault = symlink_fault(path, target, self._limits)
        if fault:
            raise _fault(
                ArchiveErrorCode.UNSAFE_LINK,
                path,
                f"is a symbolic link that {fault} ({quoted(target)!r}); a relative target inside the bundle was "
                "expected. Link within the bundle, or pack the file itself (`tar --dereference`).",
            )
        return target

    def hardlink_target(self, path: str, raw: bytes) -> str:
        """The normalised target of a hard link at `path`: a regular file earlier in the archive."""
        target = "/".join(path_parts(decode_name(raw, self._limits)))
        if target == path or self._others.get(target) is not EntryType.FILE:
            raise _fault(
                ArchiveErrorCode.UNSAFE_LINK,
                path,
                f"is a hard link to {quoted(target)!r}, which is not a regular file earlier in the archive. "
                "Pack the file itself (`tar --hard-dereference`).",
            )
        return target

    def count(self, raw: bytes | str) -> None:
        """Count one entry and its name against the limits."""
        self._entries += 1
        self._path_bytes += len(raw)
        limits = self._limits
        if self._entries > limits.max_entries:
            raise ArchiveError(
                ArchiveErrorCode.TOO_MANY_ENTRIES,
                f"The archive has more than {limits.max_entries} entries, directories included. "
                "Leave out what does not run: caches, tests, development dependencies.",
                limit="max_entries",
            )
        if self._path_bytes > limits.max_total_path_bytes:
            raise ArchiveError(
                ArchiveErrorCode.TOO_LARGE,
                f"The paths of the archive take more than {limits.max_total_path_bytes} bytes together. Shorten them.",
                limit="max_total_path_bytes",
            )

    def _add_parents(self, name: str) -> tuple[str, int]:
        """Normalise `name` and add the directories it implies; the path and the number of directories above it."""
        parts = path_parts(name)
        path = ""
        for depth, part in enumerate(parts):
            parent, path = path, f"{path}/{part}" if path else part
            if depth and parent not in self._directories:
                if parent in self._others:
                    raise _fault(
                        ArchiveErrorCode.NOT_A_DIRECTORY,
                        name,
                        f"lies below {quoted(parent)}, which is a {self._others[parent]}. Pack the bundle again.",
                    )
                self._check_component(parent, depth - 1)
                self.count(parent)
                self._directories[parent] = depth
        return path, max(len(parts) - 1, 0)

    def _add_root(self, name: str, entry_type: EntryType) -> str:
        if entry_type is not _DIRECTORY:
            raise _fault(
                ArchiveErrorCode.UNSAFE_PATH,
                name,
                f"is a {entry_type} in the place of the bundle's root directory. Pack the directory itself.",
            )
        self.count(name)
        return ""

    def _check_component(self, path: str, depth: int) -> None:
        if depth >= self._limits.max_path_depth:
            raise _fault(
                ArchiveErrorCode.UNSAFE_PATH,
                path,
                f"is more than {self._limits.max_path_depth} levels deep. Flatten the tree.",
                limit="max_path_depth",
            )
        if len(path.rpartition("/")[2].encode()) > MAX_NAME_BYTES:
            raise _fault(
                ArchiveErrorCode.UNSAFE_PATH,
                path,
                f"has a name of more than {MAX_NAME_BYTES} bytes; file systems take no longer ones. Rename it.",
            )

    def _duplicate(self, path: str) -> ArchiveError:
        return _fault(
            ArchiveErrorCode.DUPLICATE_MEMBER,
            path,
            "is in the archive twice, and which one counts is not defined. Pack the bundle again.",
        )
