"""`python -m infra.local up` and `python -m infra.local demo`: what `make up` and `make demo` call."""

import argparse
import asyncio
import sys
from collections.abc import Coroutine
from typing import Any

import asyncpg
from rich.console import Console
from rich.markup import escape

from infra.local.demo import DemoFailed, run_demo, show_addresses, show_results
from infra.local.home import Home, StackRunning
from infra.local.ports import PortTaken
from infra.local.processes import ServiceDied
from infra.local.servers import ServerError
from infra.local.stack import Stack, chosen_ports, running_stack
from infra.migrate import MigrationError
from infra.provision.server import ProvisionError
from libs.common.errors import StowageError
from libs.common.web import stop_on_signals

_EXPECTED = (
    DemoFailed, MigrationError, PortTaken, ProvisionError, ServerError, ServiceDied, StackRunning, StowageError,
    ValueError, asyncpg.PostgresError, OSError,
)  # fmt: skip
_COLOURS = {"registry": "cyan", "builder": "yellow", "runner": "green"}


async def _until_stopped(stack: Stack, stop: asyncio.Event, work: Coroutine[Any, Any, None] | None = None) -> bool:
    """Do `work`, or wait for ever; False when `stop` came first. A service that ends by itself raises."""
    tasks = {
        "watch": asyncio.create_task(stack.watch()),
        "stop": asyncio.create_task(stop.wait()),
    }
    if work is not None:
        tasks["work"] = asyncio.create_task(work)
    try:
        done, _ = await asyncio.wait(tasks.values(), return_when=asyncio.FIRST_COMPLETED)
        if tasks["stop"] in done:
            return False
        for task in done:
            task.result()
        return True
    finally:
        for task in tasks.values():
            task.cancel()
        await asyncio.gather(*tasks.values(), return_exceptions=True)


async def _up(home: Home, console: Console) -> None:
    def show(service: str, line: str) -> None:
        console.print(f"[{_COLOURS[service]}]{service:>8}[/] {escape(line)}", highlight=False, soft_wrap=True)

    async with stop_on_signals() as stop:
        console.print(f"Starting the stack in {home.path}")
        async with running_stack(home, chosen_ports(), show=show) as stack:
            show_addresses(stack.info, console)
            console.print("\nCtrl-C stops everything.\n")
            await _until_stopped(stack, stop)
            console.print("\nStopping")


async def _demo(home: Home, console: Console, *, once: bool) -> None:
    async with stop_on_signals() as stop:
        console.print(f"Starting PostgreSQL, S3, registry, builder and runner; their state is in {home.path}")
        async with running_stack(home, chosen_ports(), show=None) as stack:
            if not await _until_stopped(stack, stop, run_demo(stack.info, console, home.demo)):
                raise DemoFailed("stopped before it was done")
            show_results(stack.info, console, home.demo)
            if once or not console.is_terminal:
                console.print("\nDone; stopping the stack. Its state stays, `make up` starts it again.")
                return
            console.print("\nThe stack stays up. Ctrl-C stops everything.")
            await _until_stopped(stack, stop)
            console.print("\nStopping")


def main() -> int:
    """Run a command; 0, or 1 with the cause on standard error."""
    parser = argparse.ArgumentParser(prog="python -m infra.local", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("up", help="start the stack and stay in the foreground, with its logs")
    demo = commands.add_parser("demo", help="start the stack, import the example, run its workflows")
    demo.add_argument("--once", action="store_true", help="stop when done, also on a terminal")
    arguments = parser.parse_args()
    console = Console(soft_wrap=not sys.stdout.isatty())
    home = Home()
    try:
        if arguments.command == "up":
            asyncio.run(_up(home, console))
        else:
            asyncio.run(_demo(home, console, once=arguments.once))
    except _EXPECTED as error:
        sys.stdout.flush()
        sys.stderr.write(f"\n{type(error).__name__}: {error}\n")
        if isinstance(error, DemoFailed | ServiceDied):
            sys.stderr.write(f"The logs of the services are in {home.logs}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
