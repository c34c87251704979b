"""Bundles whose handlers are a few lines."""

import textwrap
from collections.abc import Mapping

from tests.registry.bundles import bundle
from tests.registry.running import RunningRegistry


def node(
    code: str, *, entry: str = "main.mjs", slug: str = "hello", files: Mapping[str, bytes | str] | None = None
) -> bytes:
    """A bundle for Node.js whose entry is `code`."""
    return bundle(slug, files={**(files or {}), entry: textwrap.dedent(code)}, runtime="node24", entry=entry)


def python(code: str, *, slug: str = "hello", files: Mapping[str, bytes | str] | None = None) -> bytes:
    """A bundle for Python whose entry is `code`."""
    return bundle(slug, files={**(files or {}), "main.py": textwrap.dedent(code)}, runtime="python3.11")


async def publish(registry: RunningRegistry, body: bytes, slug: str = "hello", version: str = "1.0.0") -> str:
    """Publish a bundle, also over what is there; its digest."""
    answer = await registry.publish(body, slug, version, force="true", reason="test")
    assert answer.status in (200, 201), answer.body
    digest: str = answer.json["digest"]
    return digest
