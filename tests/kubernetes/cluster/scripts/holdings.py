"""Say what an installation holds, by asking for all of it: versions, and runs with their logs and outputs."""

import asyncio
import hashlib
import json
import os
from typing import Any
from urllib.parse import quote

import aiohttp

REGISTRY, RUNNER = "http://registry:7101", "http://runner:7103"


async def main() -> None:
    """Everything, with a digest of whatever is more than a few words."""
    headers = {"Authorization": f"Bearer {os.environ['STOWAGE_TOKEN']}"}
    async with aiohttp.ClientSession(headers=headers, raise_for_status=True) as session:
        versions = {
            f"{bundle['slug']}@{version['version']}": [version["revision"], version["digest"]]
            for bundle in await _all(session, f"{REGISTRY}/job-bundles")
            for version in await _all(session, f"{REGISTRY}/job-bundles/{bundle['slug']}/versions")
        }
        runs = {run["id"]: await _run(session, run) for run in await _all(session, f"{RUNNER}/runs")}
    print(json.dumps({"versions": versions, "runs": runs}))


async def _run(session: aiohttp.ClientSession, run: dict[str, Any]) -> dict[str, Any]:
    place = f"{RUNNER}/runs/{run['id']}"
    outputs = [output["path"] for output in await _all(session, f"{place}/outputs")]
    return {
        "state": run["state"],
        "result": run["result"],
        "log": await _digest(session, f"{place}/log") if run["finishedAt"] else None,
        "outputs": {path: await _digest(session, f"{place}/outputs/{quote(path)}") for path in outputs},
    }


async def _all(session: aiohttp.ClientSession, url: str) -> list[dict[str, Any]]:
    items: list[dict[str, Any]] = []
    cursor: str | None = ""
    while cursor is not None:
        async with session.get(url, params={"limit": 200, **({"cursor": cursor} if cursor else {})}) as response:
            page = await response.json()
        items += page["items"]
        cursor = page["next"]
    return items


async def _digest(session: aiohttp.ClientSession, url: str) -> str:
    async with session.get(url) as response:
        return hashlib.sha256(await response.read()).hexdigest()


if __name__ == "__main__":
    asyncio.run(main())
