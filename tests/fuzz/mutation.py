"""Inputs made of others: damaged at random, but where that helps with what a format's reader looks at first put right.

Everything is drawn from one `random.Random`, so a seed says which inputs there will be.
"""

import gzip
import random
from collections.abc import Callable, Sequence
from typing import TypeAlias

import zstandard

from tests.unit.archives import BLOCK, gnu_long, pax

Mutator: TypeAlias = Callable[[random.Random, bytes, Sequence[bytes]], bytes]
"""From an input and others of its kind to a new one."""

MAX_BYTES = 64 * 1024

_NUMBERS = (0, 1, 2, 7, 8, 127, 128, 255, 256, 511, 512, 513, 1024, 65_535, 65_536, 2**31 - 1, 2**31, 2**32 - 1, 2**63)
_NAMES: tuple[bytes, ...] = (
    b"",
    b".",
    b"..",
    b"/",
    b"./",
    b"a/../b",
    b"/etc/passwd",
    b"manifest.json",
    b"./manifest.json/",
    b"\xff\xfe",
)
_NAMES += (b"a//b", b"a/./b", b"A", b"\xc3\xa9", b"x" * 100, b"d/" * 49, b"bin/run", b"a\0b", b"a\nb")
_KINDS = b"\x000123456789xgLKSDVMXA "
_FIELDS: tuple[tuple[int, int], ...] = (
    (0, 100),
    (100, 8),
    (108, 8),
    (116, 8),
    (124, 12),
    (136, 12),
    (148, 8),
    (156, 1),
    (157, 100),
    (257, 8),
)
_FIELDS += ((265, 32), (345, 155))
_RECORDS: tuple[tuple[str, bytes], ...] = (
    ("path", b"other/name"),
    ("path", b""),
    ("path", b"../up"),
    ("linkpath", b"manifest.json"),
    ("linkpath", b""),
    ("size", b"0"),
    ("size", b"512"),
    ("size", b"99999999999999999999"),
    ("size", b"-1"),
    ("size", b" 3"),
    ("size", b""),
    ("mtime", b"1e9999"),
    ("hdrcharset", b"BINARY"),
    ("charset", b"ISO-IR 8859 1 1998"),
    ("GNU.sparse.name", b"real"),
    ("GNU.sparse.size", b"7"),
    ("SCHILY.xattr.user.a", b"\0\n="),
)
_TOKENS: tuple[bytes, ...] = (
    b'"',
    b"\\u0000",
    b"\\ud800",
    b"\\u",
    b"[",
    b"]",
    b"{",
    b"}",
    b",",
    b":",
    b"null",
    b"NaN",
    b"-Infinity",
)
_TOKENS += (
    b"1e999",
    b"-",
    b"9" * 400,
    b"9" * 5000,
    b"\xef\xbb\xbf",
    b"\xff",
    b'"name":',
    b'"version":"1.0.0"',
    b"[" * 3000,
)
_TOKENS += (b'{"a":' * 3000, b'"entry":"../x"', b'"runtime":"python"', b'"pythonEntry":1', b"true", b" " * 100, b"\0")


def any_bytes(draw: random.Random, data: bytes, others: Sequence[bytes]) -> bytes:
    """Damage of the kinds that happen to bytes of any format."""
    content = bytearray(data)
    for _ in range(draw.choice((1, 1, 2, 3, 8))):
        _damage(draw, content, others)
    return bytes(content[:MAX_BYTES])


def tar_stream(draw: random.Random, data: bytes, others: Sequence[bytes]) -> bytes:
    """Blocks moved, headers changed and their checksums mostly put right again, extended headers put between."""
    blocks = [data[start : start + BLOCK] for start in range(0, len(data), BLOCK)]
    for _ in range(draw.choice((1, 1, 2, 4))):
        _change_blocks(draw, blocks, others)
    stream = b"".join(blocks[: MAX_BYTES // BLOCK])
    return any_bytes(draw, stream, others) if draw.random() < 0.1 else stream


def archive(draw: random.Random, data: bytes, others: Sequence[bytes]) -> bytes:
    """A compressed archive whose damage is in the compression, or in the tar stream under an intact compression."""
    if draw.random() < 0.5:
        return any_bytes(draw, data, others)
    if draw.random() < 0.5:
        return draw.choice(others)[: draw.randrange(2000)] + draw.choice(others)
    content = any_bytes(draw, draw.choice((bytes(5000), bytes(draw.randbytes(700)) * 9)), others)
    cut = draw.randrange(len(content) + 1)
    pack = draw.choice((gzip.compress, zstandard.ZstdCompressor().compress))
    return pack(content[:cut]) + pack(content[cut:])


def manifest(draw: random.Random, data: bytes, others: Sequence[bytes]) -> bytes:
    """JSON with pieces of JSON put into it, which may still be JSON."""
    content = bytearray(data)
    for _ in range(draw.choice((1, 1, 2, 3))):
        if draw.random() < 0.7:
            position = draw.randrange(len(content) + 1)
            content[position : position + draw.choice((0, 0, 1, 5, 20))] = draw.choice(_TOKENS)
        else:
            _damage(draw, content, others)
    return bytes(content[:MAX_BYTES])


def native(draw: random.Random, data: bytes, others: Sequence[bytes]) -> bytes:
    """Headers with other numbers at places where there may be numbers."""
    content = bytearray(data)
    for _ in range(draw.choice((1, 2, 3, 6))):
        if draw.random() < 0.7 and len(content) > 16:
            width = draw.choice((1, 2, 4, 8))
            position = draw.randrange(min(len(content), 512) // width) * width
            number = draw.choice((*_NUMBERS, len(content), len(content) - 1)) % 2 ** (8 * width)
            content[position : position + width] = number.to_bytes(width, draw.choice(("little", "big")))
        else:
            _damage(draw, content, others)
    return bytes(content[:MAX_BYTES])


def _damage(draw: random.Random, content: bytearray, others: Sequence[bytes]) -> None:
    position = draw.randrange(len(content) + 1)
    length = draw.choice((1, 2, 4, 16, 100, 512))
    match draw.randrange(6):
        case 0 if content:
            content[position % len(content)] ^= 1 << draw.randrange(8)
        case 1:
            content[position : position + length] = draw.randbytes(length)
        case 2:
            del content[position : position + length]
        case 3:
            content[position:position] = content[position : position + length]
        case 4:
            other = draw.choice(others)
            start = draw.randrange(len(other) + 1)
            content[position:position] = other[start : start + length]
        case _:
            del content[position:]


def _change_blocks(draw: random.Random, blocks: list[bytes], others: Sequence[bytes]) -> None:
    position = draw.randrange(len(blocks) + 1)
    match draw.randrange(8):
        case 0:
            del blocks[position : position + draw.choice((1, 2, 3))]
        case 1:
            blocks[position:position] = blocks[draw.randrange(len(blocks) + 1) :][: draw.choice((1, 2, 3))]
        case 2:
            other = draw.choice(others)
            start = draw.randrange(len(other) // BLOCK + 1) * BLOCK
            blocks[position:position] = [other[start : start + BLOCK], other[start + BLOCK : start + 2 * BLOCK]]
        case 3:
            records = dict(draw.sample(_RECORDS, draw.choice((1, 1, 2))))
            blocks[position:position] = _split(pax(dict(records), draw.choice((b"x", b"x", b"g"))))
        case 4:
            name = draw.choice(_NAMES).decode("utf-8", "surrogateescape").encode("utf-8", "replace").decode()
            blocks[position:position] = _split(gnu_long(draw.choice((b"L", b"K")), name))
        case _ if position < len(blocks) and len(blocks[position]) == BLOCK:
            blocks[position] = _changed_header(draw, blocks[position])
        case _:
            pass


def _split(data: bytes) -> list[bytes]:
    return [data[start : start + BLOCK] for start in range(0, len(data), BLOCK)]


def _changed_header(draw: random.Random, block: bytes) -> bytes:
    changed = bytearray(block)
    match draw.randrange(4):
        case 0:
            changed[156] = draw.choice(_KINDS)
        case 1:
            number = draw.choice(_NUMBERS)
            octal = b"%011o\0" % number if number < 8**11 else b"\x80" + number.to_bytes(11, "big")
            changed[124:136] = draw.choice((octal, b"%o " % (number % 8**10), b"\xff" * 12, b" " * 12)).ljust(
                12, b"\0"
            )[:12]
        case 2:
            start, length = draw.choice(((0, 100), (157, 100), (345, 155)))
            changed[start : start + length] = draw.choice(_NAMES)[:length].ljust(length, b"\0")
        case _:
            start, length = draw.choice(_FIELDS)
            changed[start : start + length] = draw.choice((bytes(length), b"7" * length, draw.randbytes(length)))
    if draw.random() < 0.9:
        changed[148:156] = b" " * 8
        changed[148:156] = b"%06o\0 " % sum(changed)
    return bytes(changed)
