"""Outputs that an agent wants to write, as the holder of the lease keeps count of them."""

import asyncio
import contextlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest

from libs.common.models import Artifact, Limits
from libs.common.object_errors import ObjectStoreUnavailable
from libs.common.samples import sample_of
from services.runner.holder import Order
from services.runner.outputs import OutputLimits
from services.runner.remote.messages import NotUnderstood
from services.runner.remote.written import WrittenOutputs
from tests.backend import Backend
from tests.ports import free_port

_DIGEST = f"sha256:{'a' * 64}"


async def test_nothing_else_is_done_with_an_output_while_the_bucket_is_asked_about_it(own: Backend) -> None:
    with _written(own) as written:
        first = asyncio.create_task(written.begin("a"))
        await asyncio.sleep(0)
        for other in (written.begin("a"), written.abort("a"), written.complete("a", _DIGEST, ["x"])):
            with pytest.raises(NotUnderstood, match="twice at a time"):
                await other
        with pytest.raises(NotUnderstood, match="twice at a time"):
            written.put("a", 1, _DIGEST)
        with pytest.raises(NotUnderstood, match="twice at a time"):
            written.part("a", 1, 1, _DIGEST)
        await first
        await written.abort("a")
    objects = own.objects()
    assert list(objects.uploads_in_flight("")) == []
    objects.close()


async def test_an_output_that_could_not_be_begun_is_not_counted(own: Backend) -> None:
    with _written(replace(own, s3_endpoint=f"http://127.0.0.1:{free_port()}")) as written:
        for _ in range(2):  # one more than there may be
            with pytest.raises(ObjectStoreUnavailable):
                await written.begin("a")


@contextlib.contextmanager
def _written(backend: Backend) -> Iterator[WrittenOutputs]:
    """Of a run that may leave one file."""
    order = Order("run", 1, "hello", "1.0.0", _DIGEST, Artifact.model_validate(sample_of(Artifact)), Limits(), {})
    objects = backend.objects()
    with ThreadPoolExecutor(2) as threads:
        yield WrittenOutputs(objects, threads, order, OutputLimits(1, 10))
    objects.close()
