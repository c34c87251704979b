"""Fixtures that every test may use."""

from collections.abc import AsyncIterator, Iterator

import pytest

from tests.backend import Backend, fresh_backend, running_servers
from tests.servers import Servers


@pytest.fixture(scope="session")
def servers() -> Iterator[Servers]:
    """A real PostgreSQL and a real S3 server, for the whole session."""
    with running_servers() as running:
        yield running


@pytest.fixture
async def backend(servers: Servers) -> AsyncIterator[Backend]:
    """A database and a bucket of the test's own."""
    async with fresh_backend(servers) as own:
        yield own
