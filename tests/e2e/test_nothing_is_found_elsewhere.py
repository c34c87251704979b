"""A run's code comes from the bucket and nowhere else."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from urllib.parse import urlsplit

from libs.common.models import RunState
from tests.e2e.conftest import Product
from tests.registry.bundles import bundle


class Cable:
    """A connection to a server that can be cut."""

    def __init__(self, host: str, port: int) -> None:
        self._target = (host, port)
        self._open: set[asyncio.StreamWriter] = set()
        self._server: asyncio.Server | None = None
        self.cut_off = False

    @contextlib.asynccontextmanager
    async def plugged_in(self) -> AsyncIterator[str]:
        """The URL of this side."""
        self._server = await asyncio.start_server(self._connect, "127.0.0.1", 0)
        try:
            yield f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        finally:
            self.cut()

    def cut(self) -> None:
        """Break what is open, and refuse what comes."""
        self.cut_off = True
        if self._server is not None:
            self._server.close()
        for writer in list(self._open):
            writer.transport.abort()

    async def _connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection(*self._target)
        self._open |= {writer, back}
        await asyncio.gather(_copy(reader, back), _copy(there, writer))
        self._open -= {writer, back}


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    writer.close()


async def test_with_the_bucket_cut_off_a_run_fails_though_it_succeeded_just_before(product: Product) -> None:
    files = {"main.py": "def handler(context):\n    return 'ran'\n"}
    assert (await product.registry.publish(bundle(files=files))).status == 201
    address = urlsplit(product.backend.s3_endpoint)
    cable = Cable(str(address.hostname), int(address.port or 80))
    async with cable.plugged_in() as endpoint, product.runner(s3_endpoint=endpoint, drain_seconds=0) as runner:
        before = await runner.run("hello@1.0.0")
        assert before.result == "ran"
        cable.cut()
        after = await runner.run("hello@1.0.0", seconds=120)
        assert after.state in (RunState.FAILED, RunState.LOST)
        assert after.result is None
    assert list(product.scratch.iterdir()) == []
