"""A request's body as it comes in."""

from collections.abc import AsyncIterator

from aiohttp import web

from libs.common.errors import TooLarge
from libs.common.reading import body_chunks
from services.registry.settings import RegistrySettings


async def chunks_of_body(request: web.Request, settings: RegistrySettings) -> AsyncIterator[bytes]:
    """The chunks of the body.

    Raises TooLarge where it says beforehand that it is too large (while it streams its reader counts), InvalidRequest
    where nothing comes for `body_idle_seconds` or where it is not what HTTP allows.
    """
    max_bytes = settings.max_artifact_bytes
    if request.content_length is not None and request.content_length > max_bytes:
        raise TooLarge(
            f"the tarball has {request.content_length} bytes; at most {max_bytes} are accepted. "
            f"Leave out what does not run. The limit is the setting {settings.variable('max_artifact_bytes')}.",
            kind="archive-too-large",
            maxBytes=max_bytes,
            setting=settings.variable("max_artifact_bytes"),
        )
    async for chunk in body_chunks(request, idle_seconds=settings.body_idle_seconds):
        yield chunk
