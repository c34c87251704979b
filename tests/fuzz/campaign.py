"""Many inputs, one after the other, each of which says which seed made it."""

import random
import time
import traceback
import tracemalloc
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

from tests.fuzz import seeds
from tests.fuzz.targets import Target

MAX_TRACED_BYTES = 48 * 1024 * 1024
"""What reading one input may take at a time: a piece of a stream, a record of each member, and what checks compare."""

_TRACED_SHARE = 50  # one in so many inputs is measured: that makes it several times slower


@dataclass(frozen=True)
class Finding:
    """An input of which something does not hold."""

    target: str
    number: int
    content: bytes
    reason: str


@dataclass
class Report:
    """What a campaign came to: inputs by target, how many of them were taken, and what was found."""

    inputs: Counter[str] = field(default_factory=Counter)
    taken: Counter[str] = field(default_factory=Counter)
    findings: list[Finding] = field(default_factory=list)


def inputs(target: Target, seed: int) -> Iterator[bytes]:
    """The corpus, and then inputs without end: a seed makes the same each time."""
    corpus = list(seeds.read(target.name).values())
    yield from corpus
    draw = random.Random(f"{target.name} {seed}")  # noqa: S311
    pool = list(corpus)
    while True:
        made = target.mutate(draw, draw.choice(pool), corpus)
        yield made
        if len(pool) < 4 * len(corpus):  # damage on top of damage goes further than either
            pool.append(made)
        elif draw.random() < 0.05:
            pool[draw.randrange(len(corpus), len(pool))] = made


def attack(target: Target, seed: int, report: Report, *, count: int | None = None, until: float | None = None) -> None:
    """Feed `count` inputs, or as many as there are until `time.monotonic()` says `until`."""
    for number, content in enumerate(inputs(target, seed)):
        if (count is not None and number >= count) or (until is not None and time.monotonic() > until):
            return
        report.inputs[target.name] += 1
        try:
            report.taken[target.name] += (
                _measured(target, content) if number % _TRACED_SHARE == 0 else target.check(content)
            )
        except Exception:  # noqa: BLE001  # each is a finding
            report.findings.append(Finding(target.name, number, content, traceback.format_exc(limit=-3)))


def _measured(target: Target, content: bytes) -> bool:
    tracemalloc.start()
    try:
        taken = target.check(content)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    if peak > MAX_TRACED_BYTES:
        raise MemoryError(f"reading {len(content)} bytes took {peak} bytes of memory")
    return taken
