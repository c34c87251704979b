"""What differs between two texts, line by line, as a unified diff (the format of `diff -u`, which `patch` reads).

The lines that stay are found with E. W. Myers, “An O(ND) Difference Algorithm and Its Variations” (1986): fewest lines
added and removed. Texts that differ in more lines than there is effort for come out as one long change, which is right
as well.
"""

import json
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

_CONTEXT_LINES = 3
_MAX_EDITS = 1000
_NO_NEWLINE = "\n\\ No newline at end of file\n"


@dataclass(slots=True)
class Effort:
    """How many steps may still be spent on finding what stays: some millions a second can be made."""

    steps: int


class _Block(NamedTuple):
    """Lines from `old_start` to before `old_stop` become those from `new_start` to before `new_stop`."""

    old_start: int
    old_stop: int
    new_start: int
    new_stop: int


def unified_diff(path: str, before: bytes | None, after: bytes | None, effort: Effort) -> str | None:
    """What turns `before` into `after`, None where the file is not there. None if one of them is not UTF-8 text."""
    try:
        old, new = _lines(before), _lines(after)
    except UnicodeDecodeError:
        return None
    names = (
        f"--- {_name('a/' + path) if before is not None else '/dev/null'}\n",
        f"+++ {_name('b/' + path) if after is not None else '/dev/null'}\n",
    )
    hunks = [_hunk(group, old, new) for group in _groups(_blocks(old, new, effort))]
    return "".join((*names, *hunks)) if hunks else ""


def _lines(content: bytes | None) -> list[str]:
    """Lines with their ends; only a newline ends one. UnicodeDecodeError for what is not text."""
    text = (content or b"").decode()
    if "\0" in text:
        raise UnicodeDecodeError("utf-8", content or b"", text.index("\0"), text.index("\0") + 1, "a NUL is not text")
    *lines, rest = text.split("\n")
    return [line + "\n" for line in lines] + ([rest] if rest else [])


def _name(path: str) -> str:
    """A name as git writes it: quoted where it could be taken for something else, ended where it has a space."""
    if not path.isprintable() or '"' in path or "\\" in path:
        return json.dumps(path, ensure_ascii=False)
    return path + "\t" if " " in path else path


def _blocks(old: Sequence[str], new: Sequence[str], effort: Effort) -> Iterator[_Block]:
    """What changes, in order."""
    shorter = min(len(old), len(new))
    head = next((n for n in range(shorter) if old[n] != new[n]), shorter)
    tail = next((n for n in range(shorter - head) if old[-1 - n] != new[-1 - n]), shorter - head)
    kept = _kept(old[head : len(old) - tail], new[head : len(new) - tail], effort)
    old_at = new_at = head
    for old_line, new_line in [*kept, (len(old) - tail - head, len(new) - tail - head)]:
        if (old_line + head, new_line + head) != (old_at, new_at):
            yield _Block(old_at, old_line + head, new_at, new_line + head)
        old_at, new_at = old_line + head + 1, new_line + head + 1


def _kept(old: Sequence[str], new: Sequence[str], effort: Effort) -> list[tuple[int, int]]:
    """The lines that stay, as pairs of their numbers, in order; none where there is no effort left to find them."""
    reached: list[array[int]] = []
    for edits in range(min(len(old) + len(new), _MAX_EDITS) + 1):
        row = array("l", bytes(array("l").itemsize * (edits + 1)))
        for index in range(edits + 1):
            x = begun = _after_edit(reached[-1], index, edits)[0] if reached else 0
            y = x - (2 * index - edits)
            while x < len(old) and y < len(new) and old[x] == new[y]:
                x, y = x + 1, y + 1
            row[index] = x
            effort.steps -= 1 + x - begun
            if x >= len(old) and y >= len(new):
                return _way_back(reached, x, y)
        if effort.steps < 0:
            break
        reached.append(row)
    return []


def _after_edit(before: "array[int]", index: int, edits: int) -> tuple[int, bool]:
    """How far in the old text the last of so many edits leads on a diagonal, and whether it adds a line.

    `before[i]` is how far one edit less led on the diagonal `2 * i - (edits - 1)`.
    """
    if index == 0 or (index < edits and before[index - 1] < before[index]):
        return before[index], True
    return before[index - 1] + 1, False


def _way_back(reached: "list[array[int]]", x: int, y: int) -> list[tuple[int, int]]:
    kept: list[tuple[int, int]] = []
    for edits in range(len(reached), 0, -1):
        begun, added = _after_edit(reached[edits - 1], (x - y + edits) // 2, edits)
        while x > begun:
            x, y = x - 1, y - 1
            kept.append((x, y))
        x, y = (x, y - 1) if added else (x - 1, y)
    kept += [(line, line) for line in range(x - 1, -1, -1)]
    return kept[::-1]


def _groups(blocks: Iterator[_Block]) -> Iterator[list[_Block]]:
    """Changes so near to each other that they share a hunk."""
    group: list[_Block] = []
    for block in blocks:
        if group and block.old_start - group[-1].old_stop > 2 * _CONTEXT_LINES:
            yield group
            group = []
        group.append(block)
    if group:
        yield group


def _hunk(group: list[_Block], old: Sequence[str], new: Sequence[str]) -> str:
    lead = min(_CONTEXT_LINES, group[0].old_start)
    trail = min(_CONTEXT_LINES, len(old) - group[-1].old_stop)
    start, stop = group[0].old_start - lead, group[-1].old_stop + trail
    new_start, new_stop = group[0].new_start - lead, group[-1].new_stop + trail
    parts = [f"@@ -{_range(start, stop)} +{_range(new_start, new_stop)} @@\n"]
    for block in group:
        parts += (_line(" ", line) for line in old[start : block.old_start])
        parts += (_line("-", line) for line in old[block.old_start : block.old_stop])
        parts += (_line("+", line) for line in new[block.new_start : block.new_stop])
        start = block.old_stop
    parts += (_line(" ", line) for line in old[start:stop])
    return "".join(parts)


def _range(start: int, stop: int) -> str:
    """Lines as hunks count them: from 1, and from the line before where there are none."""
    length = stop - start
    return f"{start + 1}" if length == 1 else f"{start + 1 if length else start},{length}"


def _line(sign: str, line: str) -> str:
    return sign + line if line.endswith("\n") else sign + line + _NO_NEWLINE
