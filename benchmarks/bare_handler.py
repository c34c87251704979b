"""What resolving is compared with: one aiohttp handler that runs one asyncpg query, and nothing else."""

import sys

import asyncpg
from aiohttp import web

_QUERY = """
    SELECT v.version, v.revision, r.digest
    FROM registry.bundles b
    JOIN registry.versions v ON v.bundle_id = b.id
    JOIN registry.revisions r ON r.version_id = v.id AND r.revision = v.revision
    WHERE b.slug = $1 AND v.version = $2
"""


async def _application(database_url: str) -> web.Application:
    pool = await asyncpg.create_pool(database_url, min_size=10, max_size=10)

    async def resolve(request: web.Request) -> web.Response:
        row = await pool.fetchrow(_QUERY, request.match_info["slug"], request.query["reference"])
        return web.json_response(dict(row or {}))

    application = web.Application()
    application.router.add_get("/job-bundles/{slug}/resolve", resolve)
    return application


if __name__ == "__main__":
    web.run_app(_application(sys.argv[1]), host="127.0.0.1", port=int(sys.argv[2]), print=None, access_log=None)
