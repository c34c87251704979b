"""Work that is not left half done: a cancellation arrives when it has ended."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import ParamSpec, TypeVar

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")


async def uninterrupted(work: Awaitable[Result]) -> Result:
    """Wait for `work`; a cancellation of the caller is delivered only when it has ended, and doesn't reach it."""
    task = asyncio.ensure_future(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        while not task.done():
            await asyncio.wait([task])
        if not task.cancelled():
            task.exception()  # seen: the cancellation is what counts
        raise


async def in_thread(
    function: Callable[Parameters, Result], *arguments: Parameters.args, **options: Parameters.kwargs
) -> Result:
    """Run `function` in a worker thread. When this returns or raises it has ended."""
    return await uninterrupted(asyncio.to_thread(function, *arguments, **options))
