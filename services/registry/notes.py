"""Signed checkpoints of the audit trail: C2SP tlog-checkpoint in a C2SP signed-note, with Ed25519.

    stowage/stowage
    1842
    6hcRhJ8n1rZXG3a1S5uhnFQ1LJ1bu1ywBKiFlYFmJ4Y=

    — stowage/stowage jK5h2w…

The origin of the tree, its size, its root in base64; then signatures, each of everything above the empty line. The name
of the key is the origin. A public key is written `origin+id+base64`, as other programs that read such notes have it.
"""

import base64
import binascii
import hashlib
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from libs.common.identifiers import new_id

_ED25519 = b"\x01"
_ID_BYTES = 4
_HASH_BYTES = 32
_MAX_NOTE_CHARACTERS = 100_000
_ORIGIN = re.compile(r"[^\s+]{1,200}")
_SIZE = re.compile(r"0|[1-9][0-9]{0,18}")
_SIGNATURE = re.compile(r"— ([^\s+]+) ([A-Za-z0-9+/]+={0,2})")


class InvalidNote(ValueError):
    """A checkpoint or a key is not what it should be; the message says how."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """What is signed: the size and the root of the tree of `origin`."""

    origin: str
    tree_size: int
    root: bytes

    @property
    def text(self) -> str:
        """The text that is signed."""
        return f"{self.origin}\n{self.tree_size}\n{base64.b64encode(self.root).decode()}\n"


@dataclass(frozen=True, slots=True)
class PublicKey:
    """A key that checks signatures."""

    origin: str
    key: Ed25519PublicKey

    @classmethod
    def parse(cls, text: str) -> Self:
        """The key in `origin+id+base64`; InvalidNote for anything else."""
        origin, _, rest = text.strip().partition("+")
        identifier, _, encoded = rest.partition("+")
        try:
            raw = base64.b64decode(encoded, validate=True)
            if raw[:1] != _ED25519 or not _ORIGIN.fullmatch(origin):
                raise ValueError
            public = cls(origin, Ed25519PublicKey.from_public_bytes(raw[1:]))
        except ValueError:
            raise InvalidNote(f"“{text.strip()[:200]}” is no public key: origin+id+base64 was expected.") from None
        if identifier != public.id.hex():
            raise InvalidNote(f"the public key of {origin} has the id {public.id.hex()}, and not {identifier[:20]}.")
        return public

    @property
    def id(self) -> bytes:
        """What a signature names the key by."""
        return hashlib.sha256(self.origin.encode() + b"\n" + self._raw).digest()[:_ID_BYTES]

    @property
    def _raw(self) -> bytes:
        return _ED25519 + self.key.public_bytes_raw()

    def __str__(self) -> str:
        return f"{self.origin}+{self.id.hex()}+{base64.b64encode(self._raw).decode()}"


class Signer:
    """A private key, and the origin for which it signs."""

    def __init__(self, origin: str, key: Ed25519PrivateKey) -> None:
        if not _ORIGIN.fullmatch(origin):
            raise InvalidNote(
                f"“{origin}” can't be an origin: no spaces and no plus signs, such as stowage/production."
            )
        self._key = key
        self.public = PublicKey(origin, key.public_key())

    @classmethod
    def from_file(cls, origin: str, path: Path) -> Self:
        """The key in a PEM file (PKCS #8, as `openssl genpkey -algorithm ed25519` makes it). OSError, InvalidNote."""
        try:
            key = serialization.load_pem_private_key(path.read_bytes(), password=None)
        except (ValueError, TypeError, UnsupportedAlgorithm):
            key = None
        if not isinstance(key, Ed25519PrivateKey):
            raise InvalidNote(
                f"{path} holds no Ed25519 key in PEM. `audit-key --key-file {path}` makes one in a new file."
            )
        return cls(origin, key)

    def sign(self, checkpoint: Checkpoint) -> str:
        """The signed note."""
        signature = base64.b64encode(self.public.id + self._key.sign(checkpoint.text.encode())).decode()
        return f"{checkpoint.text}\n— {self.public.origin} {signature}\n"


def parse_note(note: str) -> Checkpoint:
    """The checkpoint in a note, whoever signed it; InvalidNote where it is none. Extension lines are passed over."""
    text, _ = _split(note)
    lines = text.split("\n")
    if len(lines) < 4 or not _ORIGIN.fullmatch(lines[0]) or not _SIZE.fullmatch(lines[1]):
        raise InvalidNote("it is no checkpoint: a line each with origin, size and root was expected.")
    try:
        root = base64.b64decode(lines[2], validate=True)
    except binascii.Error:
        root = b""
    if len(root) != _HASH_BYTES:
        raise InvalidNote("it is no checkpoint: its root is not the base64 of 32 bytes.")
    return Checkpoint(lines[0], int(lines[1]), root)


def verified(note: str, keys: Iterable[PublicKey]) -> Checkpoint:
    """The checkpoint in a note that one of the keys signed; InvalidNote otherwise."""
    checkpoint = parse_note(note)
    text, signatures = _split(note)
    for key in keys:
        for name, signed in signatures:
            if name == key.origin == checkpoint.origin and signed[:_ID_BYTES] == key.id:
                try:
                    key.key.verify(signed[_ID_BYTES:], text.encode())
                except InvalidSignature:
                    raise InvalidNote(f"the signature of {name} is not of this text.") from None
                return checkpoint
    names = ", ".join(sorted({name for name, _ in signatures}))
    raise InvalidNote(f"none of the given keys signed it; signatures are of {names}.")


def read_or_make_key(path: Path) -> None:
    """Make a key in a file that only its owner may read, unless the file is there."""
    if path.exists():
        return
    pem = Ed25519PrivateKey.generate().private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    # Written under another name first: whoever finds the file finds a whole key in it.
    made = path.with_name(f".{path.name}.{new_id('new')}")
    try:
        descriptor = os.open(made, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(pem)
            file.flush()
            os.fsync(file.fileno())
        try:
            os.link(made, path)
        except FileExistsError:
            return
    finally:
        made.unlink(missing_ok=True)


def _split(note: str) -> tuple[str, list[tuple[str, bytes]]]:
    """The text of a note with its last line break, and its signatures by name."""
    text, separator, rest = note.rpartition("\n\n")
    if len(note) > _MAX_NOTE_CHARACTERS or not separator or not rest.endswith("\n"):
        raise InvalidNote("it is no signed note: a text, an empty line and signatures were expected.")
    signatures = []
    for line in rest.removesuffix("\n").split("\n"):
        found = _SIGNATURE.fullmatch(line)
        if found is None:
            raise InvalidNote("it is no signed note: a line after the empty one is no signature.")
        try:
            signatures.append((found[1], base64.b64decode(found[2], validate=True)))
        except binascii.Error:
            raise InvalidNote("it is no signed note: a signature is not base64.") from None
    return f"{text}\n", signatures
