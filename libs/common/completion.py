"""Work that must not be left half done when whoever waits for it goes away."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import ParamSpec, TypeVar

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")


async def to_the_end(work: Awaitable[Result]) -> Result:
    """The result of `work`, which runs to its end also when the caller is cancelled; it is cancelled only then."""
    task = asyncio.ensure_future(work)
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.wait((task,))
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is not None:
        if not task.cancelled():
            task.exception()  # marks it as seen: the caller's end goes first
        raise cancelled
    return task.result()


async def in_thread(
    function: Callable[Parameters, Result], *arguments: Parameters.args, **options: Parameters.kwargs
) -> Result:
    """Run `function` in a worker thread. When this returns or raises it has ended."""
    return await to_the_end(asyncio.to_thread(function, *arguments, **options))
