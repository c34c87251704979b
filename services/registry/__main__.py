"""The registry's commands: `serve`, `create-token` for the first tokens of a new database, and upkeep."""

import argparse
import asyncio
import getpass
import sys
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import asyncpg
import structlog

from libs.common.audit import Origin
from libs.common.auth import Scope, new_token, parse_scopes
from libs.common.database import open_pool
from libs.common.errors import StowageError
from libs.common.log import configure_logging, get_logger
from libs.common.models import TokenRequest
from libs.common.settings import SettingsError
from libs.common.web import serve_until_signalled
from services.registry import audit_commands, tokens, upkeep
from services.registry.app import create_app
from services.registry.notes import InvalidNote
from services.registry.settings import RegistrySettings

_THREADS = 32
_SCOPE_HELP = (
    f"may be repeated; one of {', '.join(Scope)}. Some can be narrowed to slugs: bundles:publish:observatory-*"
)


def main(arguments: list[str] | None = None) -> int:
    """Run a command; its exit code."""
    options = _parser().parse_args(arguments)
    if options.command == "audit-key":
        return audit_commands.show_key(options)
    if options.command == "audit-verify" and options.export is not None:
        return audit_commands.verify_files(options)
    try:
        settings = RegistrySettings.from_environment()
    except SettingsError as error:
        print(f"registry: {error}", file=sys.stderr)
        return 2
    if options.command != "serve":
        # Standard output is for the answer, which a script may read from there.
        structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
        return asyncio.run(_COMMANDS[options.command](settings, options))
    configure_logging(log_format=settings.log_format, level=settings.log_level)
    return asyncio.run(_serve(settings))


async def _serve(settings: RegistrySettings) -> int:
    # Parts are uploaded and inspected in threads; the loop's own default suits no more than a few at once.
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(_THREADS, thread_name_prefix="registry"))
    try:
        await serve_until_signalled(create_app(settings), service="registry", settings=settings)
    except (OSError, InvalidNote, asyncpg.PostgresError) as error:
        get_logger("registry").error("start_failed", error=str(error) or type(error).__name__)
        return 1
    return 0


async def _create_token(settings: RegistrySettings, options: argparse.Namespace) -> int:
    path: Path | None = options.token_file
    try:
        request = TokenRequest(subject=options.subject, scopes=options.scope)
        scopes = parse_scopes(request.scopes)
        secret = new_token() if path is None else await tokens.read_or_make_file(path)
        url = settings.database_url.get_secret_value()
        async with open_pool(url, size=2, application_name="stowage-registry") as pool, pool.acquire() as connection:
            origin = Origin(actor=f"command-line:{getpass.getuser()}")
            token = await tokens.register(connection, secret, request.subject, scopes, origin)
    except (StowageError, OSError, ValueError, asyncpg.PostgresError) as error:
        print(f"registry: no token was created: {error}", file=sys.stderr)
        return 1
    if path is None:
        print(secret)
    else:
        print(f"{token.id} for {token.subject} ({', '.join(token.scopes)}), in {path}")
    return 0


async def _gc(settings: RegistrySettings, options: argparse.Namespace) -> int:
    return await _upkeep(upkeep.collect(settings, dry_run=options.dry_run))


async def _scrub(settings: RegistrySettings, options: argparse.Namespace) -> int:
    return await _upkeep(upkeep.scrub(settings, repair=options.repair, bytes_per_second=options.bytes_per_second))


async def _upkeep(work: Coroutine[Any, Any, int]) -> int:
    try:
        return await work
    except (StowageError, OSError, asyncpg.PostgresError) as error:
        print(f"registry: {error}", file=sys.stderr)
        return 1


_COMMANDS: dict[str, Callable[[RegistrySettings, argparse.Namespace], Coroutine[Any, Any, int]]] = {
    "create-token": _create_token,
    "audit-verify": audit_commands.verify,
    "gc": _gc,
    "scrub": _scrub,
}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m services.registry", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("serve", help="serve until SIGTERM or SIGINT")
    create = commands.add_parser("create-token", help="create a token directly in the database")
    create.add_argument("--subject", required=True, help="whom the token speaks for")
    create.add_argument("--scope", action="append", required=True, help=_SCOPE_HELP)
    create.add_argument(
        "--token-file",
        type=Path,
        help="register the token in this file, making the file with a new one where it is missing; "
        "without it the new token is printed",
    )
    collect = commands.add_parser("gc", help="remove what the retention settings no longer keep")
    collect.add_argument("--dry-run", action="store_true", help="only say what would be removed")
    scrub = commands.add_parser("scrub", help="read every artifact again; ends with 1 where something is not whole")
    scrub.add_argument("--repair", action="store_true", help="remove objects that no row names")
    scrub.add_argument("--bytes-per-second", type=float, help="how fast to read; by default as the settings say")
    audit_commands.add_parsers(commands)
    return parser


if __name__ == "__main__":
    sys.exit(main())
