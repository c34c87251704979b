"""How every service stops: it is reached until it is drained, and says meanwhile that it is about to leave."""

import asyncio

import aiohttp
import pytest
from aiohttp import web

from libs.common.api import operation
from libs.common.models import Health
from libs.common.rate import RequestLimit
from libs.common.web import create_application, json_response, serve
from tests.ports import free_port


@operation(None, answers={200: Health})
async def _get_here(_request: web.Request) -> web.Response:
    """Answer."""
    return json_response(Health(status="ok"))


async def test_a_service_is_reached_until_it_is_drained_and_keeps_no_connection_meanwhile() -> None:
    draining, drained, stop = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def drain() -> None:
        draining.set()
        await drained.wait()

    async def nobody(_token: str) -> None:
        return None

    application = create_application(
        "registry",
        routes=[web.get("/here", _get_here)],
        authenticate=nobody,
        checks={},
        tags=[],
        limit=RequestLimit(None, 1, (), "none"),
        drain=drain,
    )
    port = free_port()
    serving = asyncio.create_task(
        serve(application, service="registry", host="127.0.0.1", port=port, shutdown_seconds=5, stop=stop)
    )
    url = f"http://127.0.0.1:{port}"
    async with aiohttp.ClientSession() as session:
        while await _status(session, f"{url}/readyz") != 200:  # noqa: ASYNC110
            await asyncio.sleep(0.02)
        async with session.get(f"{url}/here") as response:
            assert response.headers.get("Connection") != "close"
        stop.set()
        await draining.wait()
        async with session.get(f"{url}/readyz") as response:
            assert (response.status, await response.json()) == (
                503,
                {"status": "unavailable", "checks": {"process": "stopping"}},
            )
        async with session.get(f"{url}/here") as response:
            assert (response.status, response.headers["Connection"]) == (200, "close")
        assert not serving.done()
        drained.set()
        await serving
        with pytest.raises(aiohttp.ClientConnectorError):
            await session.get(f"{url}/here")


async def _status(session: aiohttp.ClientSession, url: str) -> int | None:
    try:
        async with session.get(url) as response:
            return response.status
    except aiohttp.ClientConnectorError:
        return None
