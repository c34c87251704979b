"""Unified diffs: applied to the old text they give the new one, and they are as short as can be."""

import re
from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

from services.registry.diff_text import Effort, unified_diff

ENOUGH = 10_000_000
LINES = st.lists(st.sampled_from(["a\n", "b\n", "\n", "+ü\n", "-\r\n", "end"]), max_size=30)
_HUNK = re.compile(r"@@ -(\d+)(?:,(\d+))? \+(\d+)(?:,(\d+))? @@")


def apply(text: str, old: list[str]) -> list[str]:
    """What a unified diff makes of lines, checking that it counts and remembers them rightly."""
    result: list[str] = []
    at = 0
    lines = text.split("\n")[2:-1]
    for line, following in pairwise([*lines, ""]):
        if line.startswith("\\"):
            continue
        if found := _HUNK.fullmatch(line):
            start, length = int(found[1]), int(found[2] or 1)
            begin = start - 1 if length else start
            assert begin >= at
            result += old[at:begin]
            at = begin
            assert int(found[3]) - (found[4] != "0") == len(result)
            continue
        sign, content = line[0], line[1:] + ("" if following.startswith("\\") else "\n")
        if sign in " -":
            assert old[at] == content
            at += 1
        if sign in " +":
            result.append(content)
    return result + old[at:]


def as_lines(parts: list[str]) -> list[str]:
    return re.findall(r"[^\n]*\n|[^\n]+", "".join(parts))


def longest_common(old: list[str], new: list[str]) -> int:
    table = [[0] * (len(new) + 1) for _ in range(len(old) + 1)]
    for i, left in enumerate(old):
        for j, right in enumerate(new):
            table[i + 1][j + 1] = table[i][j] + 1 if left == right else max(table[i][j + 1], table[i + 1][j])
    return table[-1][-1]


@settings(max_examples=200, deadline=None)
@given(LINES, LINES, st.sampled_from([0, ENOUGH]))
def test_applied_to_the_old_text_it_gives_the_new_one(before: list[str], after: list[str], steps: int) -> None:
    old, new = as_lines(before), as_lines(after)
    text = unified_diff("f", "".join(old).encode(), "".join(new).encode(), Effort(steps))
    assert text is not None
    assert apply(text, old) == new
    if steps:
        removed = sum(line.startswith("-") for line in text.split("\n")[2:])
        assert removed == len(old) - longest_common(old, new)


def test_changes_far_apart_have_hunks_of_their_own() -> None:
    old = [f"{number}\n" for number in range(1, 40)]
    new = [*old[:9], "ten\n", *old[10:16], "x\n", *old[16:30], *old[31:]]
    text = unified_diff("f", "".join(old).encode(), "".join(new).encode(), Effort(ENOUGH))
    assert text is not None
    assert re.findall("@@.*", text) == ["@@ -7,13 +7,14 @@", "@@ -28,7 +29,6 @@"]
    assert apply(text, old) == new


def test_texts_with_nothing_in_common_cost_no_more_than_the_effort() -> None:
    old, new = ("".join(f"{name}{number}\n" for number in range(50_000)).encode() for name in "ab")
    effort = Effort(10_000)
    text = unified_diff("f", old, new, effort)
    assert text is not None
    assert text.count("\n") == 100_003
    assert effort.steps > -1000


def test_names_can_not_be_taken_for_lines() -> None:
    def names(path: str) -> list[str]:
        return (unified_diff(path, b"a\n", b"b\n", Effort(ENOUGH)) or "").split("\n")[:2]

    assert names("a b") == ["--- a/a b\t", "+++ b/a b\t"]
    assert names("a\n+++ b") == ['--- "a/a\\n+++ b"', '+++ "b/a\\n+++ b"']


def test_what_is_not_text_has_no_lines() -> None:
    for content in (b"\0", b"\xff\xfe", b"text\0"):
        assert unified_diff("f", content, b"text\n", Effort(ENOUGH)) is None
        assert unified_diff("f", None, content, Effort(ENOUGH)) is None
    assert unified_diff("f", b"", b"", Effort(ENOUGH)) == ""
