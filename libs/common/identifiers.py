"""Names: identifiers that we make, and slugs, versions and digests that callers give."""

import functools
import re
import secrets
import time

import semver

from libs.common.errors import InvalidRequest

_SLUG = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,126}[a-z0-9])?")
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_MAX_VERSION_LENGTH = 128


def new_id(prefix: str) -> str:
    """A new identifier such as `run_019aa5c3e1f2…`: sorts by creation time to the millisecond, 64 random bits."""
    return f"{prefix}_{time.time_ns() // 1_000_000:012x}{secrets.token_hex(8)}"


def check_slug(slug: str) -> str:
    """Return `slug`, or raise InvalidRequest: 1 to 128 of `a-z 0-9 -`, beginning and ending with a letter or digit."""
    if not _SLUG.fullmatch(slug):
        raise InvalidRequest(
            f"“{slug[:140]}” is not a slug: use 1 to 128 lower-case letters, digits and hyphens, "
            "beginning and ending with a letter or digit."
        )
    return slug


def check_version(version: str) -> str:
    """Return `version`, or raise InvalidRequest: a semantic version (semver.org 2.0.0) such as `2.0.0-rc.1`."""
    if len(version) > _MAX_VERSION_LENGTH or not _is_semantic(version):
        raise InvalidRequest(f"“{version[:140]}” is not a semantic version: use MAJOR.MINOR.PATCH such as 1.2.0.")
    return version


@functools.lru_cache(maxsize=1024)
def _is_semantic(version: str) -> bool:
    return semver.Version.is_valid(version)


def check_digest(digest: str) -> str:
    """Return `digest`, or raise InvalidRequest: `sha256:` and 64 lower-case hexadecimal digits."""
    if not _DIGEST.fullmatch(digest):
        raise InvalidRequest(f"“{digest[:140]}” is not a digest: use sha256: and 64 lower-case hexadecimal digits.")
    return digest


def version_sort_key(version: str) -> str:
    """A string whose byte order is semantic-version precedence (semver.org 2.0.0, section 11).

    Numbers are written with their length first, so that they compare as text; a release ends with `~`, which
    sorts after every pre-release. Build metadata is part of the key only as a final tie-break.
    """
    parsed = semver.Version.parse(version)

    def number(value: int) -> str:
        digits = str(value)
        return f"{len(digits):03d}{digits}"

    core = ".".join(number(value) for value in (parsed.major, parsed.minor, parsed.patch))
    if parsed.prerelease is None:
        rank = "~"
    else:
        # Each identifier ends with a space, which sorts before all that an identifier may contain, so that
        # `alpha` comes before `alpha.1`; numbers (0) come before words (1).
        rank = "".join(
            f"0{number(int(part))} " if part.isdigit() else f"1{part} " for part in parsed.prerelease.split(".")
        )
    return f"{core}-{rank}+{parsed.build or ''}"


def is_prerelease(version: str) -> bool:
    """Whether `version` is a pre-release such as `2.0.0-rc.1`."""
    return semver.Version.parse(version).prerelease is not None
