"""Commands of the audit trail."""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from services.registry.notes import InvalidNote, Signer, read_or_make_key

if TYPE_CHECKING:
    from argparse import _SubParsersAction

_DEFAULT_ORIGIN = "stowage/stowage"


def add_parsers(commands: "_SubParsersAction[argparse.ArgumentParser]") -> None:
    """Say what the commands take."""
    key = commands.add_parser("audit-key", help="say the public key of the audit trail, making the key if need be")
    key.add_argument("--key-file", type=Path, required=True, help="PEM file; made with a new key where it is missing")
    key.add_argument("--origin", default=_DEFAULT_ORIGIN, help=f"name of the audit trail; {_DEFAULT_ORIGIN} by default")


def show_key(options: argparse.Namespace) -> int:
    """Print the public key; the exit code."""
    try:
        read_or_make_key(options.key_file)
        print(Signer.from_file(options.origin, options.key_file).public)
    except (OSError, InvalidNote) as error:
        print(f"registry: no key: {error}", file=sys.stderr)
        return 1
    return 0
