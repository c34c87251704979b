"""The registry as a web application: settings in, application out."""

import asyncio

from aiohttp import web

from libs.common.auth import Principal
from libs.common.conditional import KeptAnswers
from libs.common.rate import RequestLimit
from libs.common.web import create_application
from services.registry.resources import AUTHENTICATOR, CONTEXTS, OBJECTS, POOL, RESOLUTIONS, SETTINGS
from services.registry.routes import ROUTES, TAGS
from services.registry.settings import RegistrySettings


def create_app(settings: RegistrySettings) -> web.Application:
    """The application; it opens its database and bucket when it starts."""

    async def authenticate(token: str) -> Principal | None:
        return await app[AUTHENTICATOR].principal(token)

    async def check_database() -> None:
        async with app[POOL].acquire() as connection:
            await connection.execute("SELECT FROM registry.versions LIMIT 1")

    async def check_bucket() -> None:
        await asyncio.to_thread(app[OBJECTS].check)

    app = create_application(
        "registry",
        routes=ROUTES,
        tags=TAGS,
        cors_origins=settings.cors_origins,
        authenticate=authenticate,
        checks={"database": check_database, "bucket": check_bucket},
        limit=RequestLimit.of(settings),
    )
    app[SETTINGS] = settings
    app[RESOLUTIONS] = KeptAnswers()
    app.cleanup_ctx.extend(CONTEXTS)
    return app
