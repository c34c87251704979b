"""Commands of the audit trail."""

import argparse
import asyncio
import base64
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import asyncpg

from libs.common.database import open_pool
from libs.common.errors import StowageError
from libs.common.objects import ObjectStore
from services.registry.checking import Verdict, verify_database, verify_export
from services.registry.exports import InvalidExport
from services.registry.notes import InvalidNote, PublicKey, Signer, read_or_make_key
from services.registry.settings import RegistrySettings
from services.registry.verification import Tampered

if TYPE_CHECKING:
    from argparse import _SubParsersAction

_DEFAULT_ORIGIN = "stowage/stowage"
_UNREADABLE = (StowageError, OSError, InvalidExport, InvalidNote, UnicodeError, asyncpg.PostgresError)


def add_parsers(commands: "_SubParsersAction[argparse.ArgumentParser]") -> None:
    """Say what the commands take."""
    key = commands.add_parser("audit-key", help="say the public key of the audit trail, making the key if need be")
    key.add_argument("--key-file", type=Path, required=True, help="PEM file; made with a new key where it is missing")
    key.add_argument("--origin", default=_DEFAULT_ORIGIN, help=f"name of the audit trail; {_DEFAULT_ORIGIN} by default")
    verify = commands.add_parser(
        "audit-verify",
        help="check that the audit trail is what was signed",
        description="Check the database and the bucket that the settings name, or with --export an export and "
        "checkpoints alone. Exit code: 0 where all is as it was, 1 where not, 2 where it can't be checked.",
    )
    verify.add_argument("--public-key", action="append", default=[], help="the key, or a file with it; may be repeated")
    verify.add_argument("--export", type=Path, help="whole answer of GET /audit/export; no settings are needed then")
    verify.add_argument(
        "--checkpoint", type=Path, action="append", default=[], help="signed checkpoint, for --export; may be repeated"
    )
    verify.add_argument("--without-bucket", action="store_true", help="look at the database alone")


def show_key(options: argparse.Namespace) -> int:
    """Print the public key; the exit code."""
    try:
        read_or_make_key(options.key_file)
        print(Signer.from_file(options.origin, options.key_file).public)
    except (OSError, InvalidNote) as error:
        print(f"registry: no key: {error}", file=sys.stderr)
        return 1
    return 0


def verify_files(options: argparse.Namespace) -> int:
    """Check an export by checkpoints; the exit code."""
    if not options.checkpoint or not options.public_key:
        print("registry: --export needs --checkpoint and --public-key as well.", file=sys.stderr)
        return 2
    try:
        keys = [_public_key(text) for text in options.public_key]
        verdict = asyncio.run(verify_export(options.export, options.checkpoint, keys))
    except Tampered as error:
        return _tampered(error)
    except _UNREADABLE as error:
        return _unreadable(error)
    return _show(verdict, signed=True)


async def verify(settings: RegistrySettings, options: argparse.Namespace) -> int:
    """Check the database, and the bucket; the exit code. The registry's own key is taken unless others are given."""
    if options.checkpoint:
        print("registry: --checkpoint is for --export; the database's are in the bucket.", file=sys.stderr)
        return 2
    objects = None if options.without_bucket else ObjectStore(settings)
    try:
        keys = [_public_key(text) for text in options.public_key]
        if not keys and settings.audit_key_file is not None:
            own = Signer.from_file(settings.audit_name, settings.audit_key_file).public
            keys = [own, *settings.earlier_audit_keys]
        if not keys:
            print("signatures are not checked: there is neither --public-key nor a key in the settings.")
        url = settings.database_url.get_secret_value()
        async with open_pool(url, size=1, application_name="stowage-registry") as pool, pool.acquire() as connection:
            verdict = await verify_database(connection, objects, keys)
    except Tampered as error:
        return _tampered(error)
    except _UNREADABLE as error:
        return _unreadable(error)
    finally:
        if objects is not None:
            objects.close()
    return _show(verdict, signed=bool(keys))


def _public_key(text: str) -> PublicKey:
    return PublicKey.parse(text if "+" in text else Path(text).read_text())


def _show(verdict: Verdict, *, signed: bool) -> int:
    """Print what was found; the exit code. `signed`: there is a key, so there should be a checkpoint."""
    for note in verdict.notes:
        print(f"note: {note}")
    newest = verdict.newest
    print(f"{verdict.sealed:,} events are as they were sealed; {verdict.unsealed:,} are not sealed yet.")
    if newest is None:
        print("Nothing is signed, so whoever owns the database may have rewritten all of it.")
        if signed:
            print("There is a key, so there should be a checkpoint: none was signed yet, or all of them were removed.")
        return 2 if signed else 0
    checkpoint = newest.checkpoint
    print(
        f"{checkpoint.tree_size:,} of them are signed by {newest.source} (root "
        f"{base64.b64encode(checkpoint.root).decode()}), and {verdict.checkpoints:,} checkpoints agree."
    )
    return 0


def _tampered(error: Tampered) -> int:
    print(f"The audit trail is not what it was: {error}")
    return 1


def _unreadable(error: BaseException) -> int:
    print(f"registry: the audit trail can't be checked: {error or type(error).__name__}", file=sys.stderr)
    return 2
