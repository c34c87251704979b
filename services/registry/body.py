"""A request's body as it comes in."""

import asyncio
from collections.abc import AsyncIterator

from aiohttp import web
from aiohttp.web import RequestPayloadError

from libs.common.errors import InvalidRequest, TooLarge


async def chunks_of_body(request: web.Request, *, max_bytes: int, idle_seconds: float) -> AsyncIterator[bytes]:
    """The chunks of the body.

    Raises TooLarge where it says beforehand that it is too large (while it streams its reader counts), InvalidRequest
    where nothing comes for `idle_seconds` or where it is not what HTTP allows.
    """
    if request.content_length is not None and request.content_length > max_bytes:
        raise TooLarge(
            f"the tarball has {request.content_length} bytes; at most {max_bytes} are accepted. "
            "Leave out what does not run.",
            kind="archive-too-large",
            maxBytes=max_bytes,
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
