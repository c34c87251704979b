"""A request's body as it comes in."""

import asyncio
from collections.abc import AsyncIterator

from aiohttp import web
from aiohttp.web import RequestPayloadError

from libs.common.errors import InvalidRequest, TooLarge
from services.registry.settings import RegistrySettings


async def chunks_of_body(request: web.Request, settings: RegistrySettings) -> AsyncIterator[bytes]:
    """The chunks of the body.

    Raises TooLarge where it says beforehand that it is too large (while it streams its reader counts), InvalidRequest
    where nothing comes for `body_idle_seconds` or where it is not what HTTP allows.
    """
    max_bytes, idle_seconds = settings.max_artifact_bytes, settings.body_idle_seconds
    if request.content_length is not None and request.content_length > max_bytes:
        raise TooLarge(
            f"the tarball has {request.content_length} bytes; at most {max_bytes} are accepted. "
            f"Leave out what does not run. The limit is the setting {settings.variable('max_artifact_bytes')}.",
            kind="archive-too-large",
            maxBytes=max_bytes,
            setting=settings.variable("max_artifact_bytes"),
        )
    while True:
        try:
            async with asyncio.timeout(idle_seconds):
                chunk = await request.content.readany()
        except TimeoutError:
            raise InvalidRequest(
                f"nothing came for {idle_seconds:g} seconds. Publish again.", kind="body-stalled"
            ) from None
        except RequestPayloadError as error:
            raise InvalidRequest(f"the body is damaged: {error}. Publish again.", kind="body-damaged") from error
        if not chunk:
            return
        yield chunk
