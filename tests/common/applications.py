"""The three services as applications that are not started: to look at their routes."""

from typing import Any

from aiohttp import web

from services.builder.app import create_app as builder_app
from services.builder.settings import BuilderSettings
from services.registry.app import create_app as registry_app
from services.registry.settings import RegistrySettings
from services.runner.app import create_app as runner_app
from services.runner.settings import RunnerSettings

_SETTINGS: dict[str, Any] = {
    "database_url": "postgresql://nowhere/none",
    "s3_endpoint": "http://127.0.0.1:1",
    "s3_access_key": "none",
    "s3_secret_key": "none",
}
_TOKEN: dict[str, Any] = {"registry_url": "http://127.0.0.1:1", "service_token": "none"}


def applications() -> dict[str, web.Application]:
    """Each service by its name."""
    return {
        "registry": registry_app(RegistrySettings(**_SETTINGS)),
        "builder": builder_app(BuilderSettings(**_SETTINGS, **_TOKEN)),
        "runner": runner_app(RunnerSettings(**_SETTINGS, **_TOKEN)),
    }
