"""Ask for an import and wait until it builds, or, given its id, until it has ended. Say what is known of it then."""

import asyncio
import json
import os
import sys
from collections import Counter
from typing import Any

from libs.common.client import BuilderClient
from libs.common.errors import StowageError

_EXAMPLE = "environmental-observatory"
_POLL_SECONDS = 0.5


async def main(import_id: str | None) -> None:
    """One of the two."""
    async with BuilderClient("http://builder:7102", os.environ["STOWAGE_TOKEN"]) as builder:
        if import_id is None:
            started = await builder.start_import(_EXAMPLE)
            while not any(build.stage for build in (await builder.import_(started.id)).builds):  # noqa: ASYNC110
                await asyncio.sleep(_POLL_SECONDS)
            print(json.dumps({"id": started.id}))
            return
        while not (await _seen(builder, import_id))["finishedAt"]:  # noqa: ASYNC110
            await asyncio.sleep(_POLL_SECONDS)
        events = Counter([kind async for _number, kind, _data in builder.import_events(import_id)])
        print(json.dumps({**await _seen(builder, import_id), "events": events}))


async def _seen(builder: BuilderClient, import_id: str) -> dict[str, Any]:
    """The import; nothing of it where its builder is being replaced this moment."""
    try:
        seen: dict[str, Any] = json.loads((await builder.import_(import_id)).model_dump_json(by_alias=True))
    except StowageError:
        return {"finishedAt": None}
    return seen


if __name__ == "__main__":
    asyncio.run(main(json.loads(sys.argv[1]).get("id")))
