"""Providers of secrets, and the mask over their values."""

import base64
import os
from pathlib import Path
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.runner.masking import Mask, MaskedStream
from services.runner.secrets import MAX_SECRET_BYTES, DirectorySecrets, EnvironmentSecrets, SecretUnreadable


def _mount(directory: Path, version: str, values: dict[str, bytes]) -> None:
    """Files as the kubelet mounts them: names lead through `..data` to a directory that is replaced as a whole."""
    (directory / version).mkdir(parents=True)
    for name, value in values.items():
        (directory / version / name).write_bytes(value)
        if not (directory / name).is_symlink():
            (directory / name).symlink_to(f"..data/{name}")
    (directory / "..data_tmp").symlink_to(version)
    (directory / "..data_tmp").replace(directory / "..data")


async def test_a_mounted_secret_is_read_through_its_links_and_anew_each_time(tmp_path: Path) -> None:
    provider = DirectorySecrets(tmp_path)
    _mount(tmp_path, "..2026_11_23_1", {"tls.key": b"one\n"})
    assert await provider.get("tls.key") == "one"
    _mount(tmp_path, "..2026_11_23_2", {"tls.key": b"two"})
    assert await provider.get("tls.key") == "two"
    assert await provider.get("..data") is None
    assert await provider.get("absent") is None


@pytest.mark.parametrize(
    ("data", "value"),
    [(b"a", "a"), (b"a\n", "a"), (b"a\r\n", "a"), (b"a\n\n", "a\n"), (b" a ", " a "), (b"", ""), (b"a\nb\n", "a\nb")],
)
async def test_one_line_break_at_the_end_is_not_of_the_value(tmp_path: Path, data: bytes, value: str) -> None:
    (tmp_path / "name").write_bytes(data)
    assert await DirectorySecrets(tmp_path).get("name") == value


@pytest.mark.parametrize("name", ["../name", "..", ".", "", "a/b", "/etc/passwd", ".hidden", "name\n", "a\0b"])
async def test_names_lead_nowhere_else(tmp_path: Path, name: str) -> None:
    (tmp_path / "name").write_text("outside")
    (tmp_path / "kept" / "a").mkdir(parents=True)
    (tmp_path / "kept" / "a" / "b").write_text("below")
    (tmp_path / "kept" / ".hidden").write_text("hidden")
    assert await DirectorySecrets(tmp_path / "kept").get(name) is None


async def test_what_can_not_be_read_is_not_taken_for_missing(tmp_path: Path) -> None:
    (tmp_path / "directory").mkdir()
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    (tmp_path / "large").write_bytes(b"x" * (MAX_SECRET_BYTES + 1))
    os.mkfifo(tmp_path / "pipe")
    for name, reason in (
        ("directory", "no regular file"),
        ("binary", "not UTF-8"),
        ("large", "larger than"),
        ("pipe", "no regular file"),
    ):
        with pytest.raises(SecretUnreadable, match=f"{tmp_path / name} .*{reason}"):
            await DirectorySecrets(tmp_path).get(name)


async def test_a_variable_is_named_after_the_secret() -> None:
    provider = EnvironmentSecrets({"STOWAGE_SECRET_DB_PASS_WORD": "value", "DB_PASS_WORD": "another"})
    assert await provider.get("db.pass-word") == "value"
    assert await provider.get("word") is None


_VALUES = st.text(st.characters(codec="utf-8"), min_size=4, max_size=40)


@given(_VALUES, st.text(max_size=20), st.text(max_size=20))
def test_a_value_is_replaced_wherever_it_is(value: str, before: str, after: str) -> None:
    mask = Mask([value])
    if len(value.strip()) >= 4:
        assert value.strip() not in mask.text(before + value + after).replace("***", "")


@given(st.from_regex(r"[a-z]{8,30}", fullmatch=True), st.integers(0, 60), st.integers(1, 20))
def test_a_value_across_pieces_is_replaced_but_for_three_characters(value: str, at: int, size: int) -> None:
    text = "0" * at + value + "1" * 40
    stream = MaskedStream(Mask([value]))
    pieces = [text[start : start + size] for start in range(0, len(text), size)]
    masked = [stream.piece(piece, goes_on=number + 1 < len(pieces)) for number, piece in enumerate(pieces)]
    assert sum(character.isalpha() for character in "".join(masked)) <= 3


def test_nothing_is_replaced_where_there_are_no_secrets_or_short_ones() -> None:
    for mask in (Mask(), Mask(["abc", "", " \n"])):
        assert mask.text("abc and more…") == "abc and more…"
        assert mask.value({"a": ["abc", 1, None]}) == {"a": ["abc", 1, None]}


def test_encodings_of_a_value_are_replaced() -> None:
    value = 'pass "word"\\/?&=+é'
    mask = Mask([value])
    for prefix in ("", "u", "us", "user:"):
        encoded = base64.b64encode(f"{prefix}{value}".encode()).decode()
        masked = mask.text(encoded)
        assert "***" in masked
        assert encoded[8:-4] not in masked
    assert mask.text(quote(value, safe="")) == "***"
    assert mask.value({"text": [f"<{value}>"], value: 1}) == {"text": ["<***>"], "***": 1}


@pytest.mark.parametrize("value", ["it's \\ here", 'say "it"', "both ' and \"", "three ' \" ` \\", "two\nlines"])
def test_values_are_replaced_as_interpreters_show_them(value: str) -> None:
    mask = Mask([value])
    assert mask.text(repr(value))[1:-1] == "***"
    in_backticks = value.replace("\\", "\\\\").replace("\n", "\\n")
    assert mask.text(f"`{in_backticks}`") == "`***`"


def test_overlapping_values_leave_nothing_of_either() -> None:
    assert Mask(["abcdef", "defghi"]).text("<abcdefghi>") == "<***>"
    assert Mask(["secret", "secret-longer"]).text("secret-longer secret") == "*** ***"


def test_the_beginning_of_a_value_is_replaced_where_a_text_was_cut() -> None:
    mask = Mask(["0123456789"])
    assert mask.text("it is 01234…") == "it is ***…"
    assert mask.text("it is 01234") == "it is 01234"
    assert mask.value(["it is 01234…"]) == ["it is ***…"]
