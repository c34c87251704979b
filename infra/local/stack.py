"""The embedded stack: PostgreSQL, S3 and the three services, started in order and stopped in the reverse."""

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import aiohttp

from infra.local import servers
from infra.local.home import Home, Secrets, StackInfo
from infra.local.ports import DEFAULT_BASE, Ports
from infra.local.processes import Service, ServiceDied, ShowLine, run_command
from infra.migrate import migrate
from infra.provision.policies import RIGHTS
from infra.provision.server import Credentials, Server, make_bucket
from infra.provision.users import ensure_users
from infra.tokens import FIRST_TOKENS

_BUCKET = "stowage"
_DATABASE = "stowage"
_READY_SECONDS = 60.0


def chosen_ports() -> Ports:
    """The ports that STOWAGE_PORT_BASE asks for; raises ValueError with a sentence when it is no usable number."""
    text = os.environ.get("STOWAGE_PORT_BASE") or str(DEFAULT_BASE)
    if not text.isdigit() or not 1024 <= int(text) <= 65000:  # the range is in the sentence
        raise ValueError(f"STOWAGE_PORT_BASE is “{text}”; it must be a number from 1024 to 65000")
    return Ports.from_base(int(text))


class Stack:
    """A stack that is up."""

    def __init__(self, info: StackInfo, services: list[Service]) -> None:
        self.info = info
        self._services = services

    async def watch(self) -> None:
        """Raise ServiceDied as soon as one of the services ends by itself."""
        tasks = [asyncio.create_task(service.wait()) for service in self._services]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


@asynccontextmanager
async def running_stack(home: Home, ports: Ports, *, show: ShowLine | None) -> AsyncIterator[Stack]:
    """The stack, while the context is open. Each line that a service logs goes to `show`, if given, and to a file.

    Raises StackRunning, PortTaken, ServerError, ProvisionError, MigrationError or ServiceDied, each with a sentence.
    """
    async with AsyncExitStack() as stack:
        stack.enter_context(home.locked())
        ports.check()
        secrets = home.secrets()
        first_start = not (home.postgres / "PG_VERSION").exists()
        endpoint = stack.enter_context(
            servers.s3_server(
                home.s3,
                ports,
                access_key=secrets.s3_access_key,
                secret_key=secrets.s3_secret_key,
                console_password=secrets.s3_console_password,
            )
        )
        maintenance_url = stack.enter_context(servers.postgres(home.postgres))
        database_url = await servers.create_database(maintenance_url, _DATABASE)
        await migrate(database_url)
        await asyncio.to_thread(_provision, endpoint, secrets)
        environments = _environments(home, ports, secrets, database_url, endpoint)
        await asyncio.gather(
            _ensure_tokens(home, environments["registry"], first_start=first_start),
            _ensure_audit_key(home, environments["registry"]),
        )
        for name in ("builder", "runner"):
            environments[name][f"STOWAGE_{name.upper()}_SERVICE_TOKEN"] = _token(home, name)

        services = []
        for name, environment in environments.items():
            service = Service(name, environment, home.logs / f"{name}.log", show)
            await service.start()
            stack.push_async_callback(service.stop)
            services.append(service)
        up = Stack(_describe(home, ports, secrets, database_url, endpoint), services)
        await _until_ready(up, ports)
        home.write_stack(up.info)
        yield up


def _provision(endpoint: str, secrets: Secrets) -> None:
    server = Server(endpoint, _BUCKET, "us-east-1", Credentials(secrets.s3_access_key, secrets.s3_secret_key))
    make_bucket(server)
    ensure_users(server, {service: secrets.s3_credentials(service) for service in RIGHTS})


def _environments(
    home: Home, ports: Ports, secrets: Secrets, database_url: str, endpoint: str
) -> dict[str, dict[str, str]]:
    common = {
        "DATABASE_URL": database_url,
        "S3_ENDPOINT": endpoint,
        "S3_BUCKET": _BUCKET,
        "LOG_FORMAT": "console",
    }
    own = {
        "registry": {"PORT": str(ports.registry), "AUDIT_KEY_FILE": str(home.audit_key)},
        "builder": {"PORT": str(ports.builder), "REGISTRY_URL": f"http://127.0.0.1:{ports.registry}"},
        "runner": {"PORT": str(ports.runner), "REGISTRY_URL": f"http://127.0.0.1:{ports.registry}"},
    }
    environments = {}
    for name, settings in own.items():
        keys = secrets.s3_credentials(name)
        given = {**common, "S3_ACCESS_KEY": keys.access_key, "S3_SECRET_KEY": keys.secret_key, **settings}
        environments[name] = {f"STOWAGE_{name.upper()}_{key}": value for key, value in given.items()}
    # Secrets of jobs, from whoever starts the stack.
    environments["runner"] |= {key: value for key, value in os.environ.items() if key.startswith("STOWAGE_SECRET_")}
    return environments


async def _ensure_tokens(home: Home, environment: dict[str, str], *, first_start: bool) -> None:
    missing = [name for name in FIRST_TOKENS if first_start or not (home.tokens / name).exists()]
    await asyncio.gather(
        *(
            run_command(
                "services.registry",
                "create-token",
                *("--subject", name),
                *(argument for scope in FIRST_TOKENS[name] for argument in ("--scope", scope)),
                *("--token-file", str(home.tokens / name)),
                environment=environment,
            )
            for name in missing
        )
    )


async def _ensure_audit_key(home: Home, environment: dict[str, str]) -> None:
    if not home.audit_key.exists():
        await run_command("services.registry", "audit-key", "--key-file", str(home.audit_key), environment=environment)


def _token(home: Home, name: str) -> str:
    return (home.tokens / name).read_text().strip()


def _describe(home: Home, ports: Ports, secrets: Secrets, database_url: str, endpoint: str) -> StackInfo:
    return StackInfo(
        registry=f"http://127.0.0.1:{ports.registry}",
        builder=f"http://127.0.0.1:{ports.builder}",
        runner=f"http://127.0.0.1:{ports.runner}",
        s3={
            "endpoint": endpoint,
            "accessKey": secrets.s3_access_key,
            "secretKey": secrets.s3_secret_key,
            "bucket": _BUCKET,
            "console": f"http://127.0.0.1:{ports.s3_console}",
            "consoleUser": "admin",
            "consolePassword": secrets.s3_console_password,
        },
        database=database_url,
        tokens={"admin": _token(home, "admin")},
        pid=os.getpid(),
    )


async def _until_ready(stack: Stack, ports: Ports) -> None:
    async def ready(session: aiohttp.ClientSession, port: int) -> None:
        while True:
            try:
                async with session.get(f"http://127.0.0.1:{port}/readyz") as response:
                    if response.status == 200:
                        return
            except aiohttp.ClientError:
                pass
            await asyncio.sleep(0.05)

    async def all_ready() -> None:
        async with aiohttp.ClientSession() as session:
            await asyncio.gather(*(ready(session, port) for port in (ports.registry, ports.builder, ports.runner)))

    tasks = [asyncio.create_task(stack.watch()), asyncio.create_task(all_ready())]
    try:
        done, _ = await asyncio.wait(tasks, timeout=_READY_SECONDS, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    if not done:
        raise ServiceDied(f"the services were not ready after {_READY_SECONDS:.0f} seconds; look into their logs")
