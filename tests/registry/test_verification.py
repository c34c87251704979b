"""Whatever the owner of the database does to the audit trail is found, and the first event concerned is named."""

import asyncio
import base64
import contextlib
import json
import re
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest
import structlog

from libs.common.database import Connection
from services.registry import evidence
from services.registry.__main__ import main
from services.registry.checking import Verdict, verify_database, verify_export
from services.registry.exports import export_line
from services.registry.notes import Checkpoint, Signer, read_or_make_key
from services.registry.sealing import seal, seal_batch
from services.registry.store import trail as store
from services.registry.store.trail import EventFilter
from services.registry.tree import StoredTree
from services.registry.verification import Tampered
from tests.backend import Backend
from tests.registry.trail import ORIGIN, TABLES, Trail, opened_trail

# Events 1 to 4 were signed first, then 6 to 9; 5 was never committed.
_FIRST, _SECOND = 4, 4


@pytest.fixture
async def trail(backend: Backend, tmp_path: Path) -> AsyncIterator[Trail]:
    """A trail of eight events, at positions 0 to 7, and two checkpoints."""
    async with opened_trail(backend, tmp_path) as opened:
        assert await opened.grow(_FIRST) == [1, 2, 3, 4]
        async with opened.pool.acquire() as connection:
            await connection.execute("SELECT nextval(pg_get_serial_sequence('audit.events', 'id'))")
        assert await opened.grow(_SECOND) == [6, 7, 8, 9]
        yield opened


@pytest.fixture
def _logging_as_before() -> Iterator[None]:
    """A command sends the log to what is standard error at that moment."""
    yield
    structlog.reset_defaults()


async def _verify(trail: Trail, *, bucket: bool = True, within: "Connection | None" = None) -> Verdict:
    objects, keys = trail.objects if bucket else None, [trail.signer.public]
    if within is not None:
        return await verify_database(within, objects, keys)
    async with trail.pool.acquire() as connection:
        return await verify_database(connection, objects, keys)


async def _found(trail: Trail, *, bucket: bool = True, within: "Connection | None" = None) -> str:
    with pytest.raises(Tampered) as raised:
        await _verify(trail, bucket=bucket, within=within)
    return str(raised.value)


@contextlib.asynccontextmanager
async def _tampered(trail: Trail, *statements: str) -> AsyncIterator[Connection]:
    """A connection that sees what the statements did, which is as it was afterwards."""
    async with trail.pool.acquire() as connection:
        transaction = connection.transaction(isolation="repeatable_read")
        await transaction.start()
        for statement in (*(f"ALTER TABLE audit.{table} DISABLE TRIGGER USER" for table in TABLES), *statements):
            await connection.execute(statement)
        yield connection
        await transaction.rollback()


async def _forge(trail: Trail, connection: Connection) -> None:
    """Make the tree anew of what events there are, and sign it with the key, whose owner may be the database's."""
    await connection.execute("TRUNCATE audit.leaves, audit.subtrees, audit.checkpoints, audit.unsealed")
    await connection.execute("INSERT INTO audit.unsealed SELECT id FROM audit.events")
    size = await seal_batch(connection)
    if size > 0:
        root = await StoredTree(connection).root(size)
        await store.insert_checkpoint(connection, size, root, trail.signer.sign(Checkpoint(ORIGIN, size, root)))


_INSERT = """
    INSERT INTO audit.events (id, at, actor, action, subject) OVERRIDING SYSTEM VALUE
    SELECT 5, at, 'mallory', 'version.published', 'hello@9.9.9' FROM audit.events WHERE id = 4
"""
_SWAP = """
    UPDATE audit.events e SET actor = o.actor, subject = o.subject, detail = o.detail
    FROM audit.events o WHERE (e.id, o.id) IN ((2, 8), (8, 2))
"""


async def test_a_trail_that_nobody_touched_is_as_it_was(trail: Trail) -> None:
    await trail.append(2)
    await seal(trail.pool)
    await trail.append(1)
    verdict = await _verify(trail)
    assert (verdict.sealed, verdict.unsealed, verdict.checkpoints, verdict.notes) == (10, 1, 2, [])
    assert verdict.newest is not None
    assert verdict.newest.checkpoint.tree_size == 8
    assert (await _verify(trail, bucket=False)).checkpoints == 2


_DONE_TO_EVENTS: list[tuple[list[str], str]] = [
    (["UPDATE audit.events SET actor = 'mallory' WHERE id IN (7, 3)"], "event 3 .*mallory.* was changed"),
    (["UPDATE audit.events SET at = at - interval '1 microsecond' WHERE id = 6"], "event 6 .* was changed"),
    (["UPDATE audit.events SET detail = detail || '{\"a\": 1}' WHERE id = 1"], "event 1 .* was changed"),
    ([_SWAP], "event 2 .* was changed"),
    (["DELETE FROM audit.events WHERE id IN (3, 4)"], "event 3, at position 2 of the tree, was removed"),
    (["DELETE FROM audit.events WHERE id = 9"], "event 9, at position 7 of the tree, was removed"),
    (
        ["DELETE FROM audit.events WHERE id = 6", "DELETE FROM audit.leaves WHERE event_id = 6"],
        "the event at position 4 of the tree, after event 4, was removed",
    ),
    (["DELETE FROM audit.leaves WHERE position = 0"], "position 0 of the tree, at the beginning, was removed"),
    ([_INSERT], "event 5 has no place in the tree"),
    (["UPDATE audit.checkpoints SET root = sha256('') WHERE tree_size = 4"], "checkpoint of 4 events .* changed"),
    (
        ["UPDATE audit.checkpoints SET note = replace(note, E'\\n8\\n', E'\\n9\\n')"],
        "checkpoint of 8 events .* signature",
    ),
]


async def test_what_was_done_to_events_is_named(trail: Trail) -> None:
    for statements, message in _DONE_TO_EVENTS:
        async with _tampered(trail, *statements) as connection:
            for bucket in (True, False):
                assert re.search(message, await _found(trail, bucket=bucket, within=connection)), statements
    assert (await _verify(trail)).sealed == 8


_FORGED: list[tuple[list[str], str]] = [
    (
        ["UPDATE audit.events SET reason = 'none' WHERE id = 7"],
        "event 7, at position 5, was changed",
    ),
    (["DELETE FROM audit.events WHERE id = 2"], "the event at position 1, just before event 3, was removed"),
    (
        ["DELETE FROM audit.events WHERE id IN (7, 8)"],
        "event 9, at position 5, was changed, or stands in the place",
    ),
    ([_INSERT], "event 5, at position 4, was inserted"),
    ([_SWAP], "event 2, at position 1, was changed"),
    (
        ["DELETE FROM audit.events WHERE id > 7"],
        "signs 8 events, but the tree has 6, the last is event 7: 2 events",
    ),
    (["DELETE FROM audit.events"], "signs 4 events, but the tree has 0, there are none: 4 events"),
]


async def test_a_forged_tree_is_found_by_what_is_in_the_bucket(trail: Trail) -> None:
    for statements, message in _FORGED:
        async with _tampered(trail, *statements) as connection:
            await _forge(trail, connection)
            verdict = await _verify(trail, bucket=False, within=connection)
            assert verdict.unsealed == 0  # the database agrees with itself
            assert message in await _found(trail, within=connection), statements
    assert (await _verify(trail)).sealed == 8


async def test_events_that_changed_places_are_both_named(trail: Trail) -> None:
    async with _tampered(
        trail,
        "UPDATE audit.leaves SET position = position + 100 WHERE position IN (5, 6)",
        "UPDATE audit.leaves SET position = CASE position WHEN 105 THEN 6 ELSE 5 END WHERE position > 100",
    ) as connection:
        assert "events 8 and 7 changed places at position 5" in await _found(trail, within=connection)
        found = await _found(trail, bucket=False, within=connection)
        assert "at positions 4 to 7 (the last of them is event 9)" in found


async def test_without_the_hashes_in_the_bucket_a_checkpoint_says_where_about(trail: Trail) -> None:
    for key in trail.backend.keys("audit/leaves/"):
        trail.objects.delete(key)
    async with _tampered(trail, "UPDATE audit.events SET actor = 'mallory' WHERE id = 7") as connection:
        await _forge(trail, connection)
        found = await _found(trail, within=connection)
    assert found.startswith("audit/checkpoints/0000000000000008.txt in the bucket signs another tree of 8 events")
    assert "at positions 4 to 7" in found
    assert "The 4 events before are as they were" in found


async def test_a_rolled_back_tail_is_found_by_the_bucket_alone(trail: Trail) -> None:
    await trail.as_owner(
        "DELETE FROM audit.events WHERE id > 4",
        "DELETE FROM audit.leaves WHERE event_id > 4",
        "DELETE FROM audit.checkpoints WHERE tree_size > 4",
    )
    assert (await _verify(trail, bucket=False)).sealed == 4
    assert "008.txt in the bucket signs 8 events, but the tree has 4, the last is event 4: 4 events" in await _found(
        trail
    )
    await trail.append(6, actor="mallory")
    await seal(trail.pool)
    assert "event 10, at position 4, was changed, or stands in the place of another one" in await _found(trail)


async def test_kept_hashes_are_compared(trail: Trail) -> None:
    await trail.grow(300)
    assert (await _verify(trail)).sealed == 308
    await trail.as_owner("UPDATE audit.subtrees SET hash = sha256('') WHERE level = 8")
    assert "the kept hash above positions 0 to 255" in await _found(trail)
    await trail.as_owner("DELETE FROM audit.subtrees")
    assert "the kept hash above positions 0 to 255" in await _found(trail)


async def test_what_is_wrong_in_the_bucket_is_not_put_down_to_the_database(trail: Trail) -> None:
    name = "audit/leaves/0000000000000004-0000000000000008.bin"
    with trail.objects.read(name) as body:
        data = b"".join(body)
    trail.objects.put(name, bytes(32) + data[32:], content_type="application/octet-stream")
    verdict = await _verify(trail)
    assert verdict.notes == ["the bucket's hash at position 4 is not the one that was signed; it was damaged."]
    note = trail.signer.sign(Checkpoint(ORIGIN, 4, b"\0" * 32))
    trail.objects.put("audit/checkpoints/0000000000000008.txt", note.encode(), content_type="text/plain")
    assert "008.txt in the bucket was changed: it is the checkpoint of 4 events" in await _found(trail)


async def test_an_event_that_was_backdated_is_remarked(trail: Trail) -> None:
    async with trail.pool.acquire() as connection:
        await connection.execute(
            "INSERT INTO audit.events (at, actor, action, subject) VALUES ('2001-01-01Z', 'a', 'b', 'c')"
        )
    await seal(trail.pool)
    (note,) = (await _verify(trail)).notes
    assert "event 10 says that it is of 2001-01-01" in note


async def _export(trail: Trail, path: Path, change: Callable[[list[str]], object] = lambda _lines: None) -> Path:
    lines = [export_line(event) async for event in evidence.export(trail.pool, EventFilter())]
    change(lines)
    path.write_text("".join(lines))
    return path


def _notes(trail: Trail, directory: Path) -> list[Path]:
    paths = []
    for number, key in enumerate(trail.backend.keys("audit/checkpoints/")):
        with trail.objects.read(key) as body:
            paths.append(directory / f"{number}.txt")
            paths[-1].write_bytes(b"".join(body))
    return paths


def _rewrite(position: int, *, hashes: bool) -> Callable[[list[str]], object]:
    def change(lines: list[str]) -> None:
        line = json.loads(lines[position])
        line["actor"] = "mallory"
        if hashes:
            line["leafHash"] = base64.b64encode(bytes(32)).decode()
        lines[position] = json.dumps(line) + "\n"

    return change


async def test_an_export_and_checkpoints_are_enough(trail: Trail, tmp_path: Path) -> None:
    await trail.append(3)
    notes, keys = _notes(trail, tmp_path), [trail.signer.public]
    verdict = await verify_export(await _export(trail, tmp_path / "good"), notes, keys)
    assert (verdict.sealed, verdict.unsealed, verdict.checkpoints) == (8, 3, 2)

    def swap(lines: list[str]) -> None:
        lines[2], lines[3] = lines[3], lines[2]

    cases: dict[str, Callable[[list[str]], object]] = {
        r"event 6 .*mallory.* was changed": _rewrite(4, hashes=False),
        r"event 6 .* was changed": _rewrite(4, hashes=True),
        r"position 1 of the tree, after event 1, was removed": lambda lines: lines.pop(1),
        r"position 2 of the tree, after event 2, was removed": swap,
        r"event 3 was inserted": lambda lines: lines.insert(3, lines[2]),
        r"1\.txt signs 8 events, but the tree has 7, the last is event 8: 1 event after": lambda lines: lines.pop(7),
    }
    for message, change in cases.items():
        bad = await _export(trail, tmp_path / "bad", change)
        with pytest.raises(Tampered, match=message):
            await verify_export(bad, notes, keys)

    def drop_hash(lines: list[str]) -> None:
        line = json.loads(lines[4])
        lines[4] = json.dumps({**line, "actor": "mallory", "leafHash": None}) + "\n"

    with pytest.raises(Tampered, match=r"1\.txt signs another tree of 8 events: at positions 4 to 7"):
        await verify_export(await _export(trail, tmp_path / "bad", drop_hash), notes, keys)


@pytest.mark.usefixtures("_logging_as_before")
async def test_commands_say_what_they_found(
    trail: Trail, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in trail.backend.environment("STOWAGE_REGISTRY_").items():
        monkeypatch.setenv(name, value)
    read_or_make_key(tmp_path / "other.pem")
    key = tmp_path / "key.pub"
    key.write_text(f"{trail.signer.public}\n")
    export, notes = await _export(trail, tmp_path / "export"), _notes(trail, tmp_path)

    async def run(*arguments: str | Path) -> tuple[int, str]:
        code = await asyncio.to_thread(main, ["audit-verify", *map(str, arguments)])
        shown = capsys.readouterr()
        return code, shown.out + shown.err

    code, said = await run("--public-key", key)
    assert (code, "8 of them are signed by audit/checkpoints/0000000000000008.txt in the bucket" in said) == (0, True)
    assert (await run("--public-key", str(trail.signer.public), "--without-bucket"))[0] == 0
    assert "signatures are not checked" in (await run())[1]
    files = ("--export", export, "--checkpoint", notes[1])
    code, said = await run(*files, "--public-key", key)
    assert (code, "8 of them are signed" in said) == (0, True)

    other = Signer.from_file(ORIGIN, tmp_path / "other.pem").public
    code, said = await run("--public-key", str(other))
    assert (code, "none of the given keys signed it" in said) == (1, True)
    assert (await run(*files))[0] == 2
    assert (await run("--checkpoint", notes[0]))[0] == 2
    assert (await run(*files, "--public-key", tmp_path / "missing"))[0] == 2
    assert (await run("--export", notes[0], "--checkpoint", notes[0], "--public-key", key))[0] == 2

    await trail.as_owner("DELETE FROM audit.events WHERE id = 3")
    code, said = await run("--public-key", key)
    assert code == 1
    assert said == "The audit trail is not what it was: event 3, at position 2 of the tree, was removed.\n"

    await trail.as_owner("TRUNCATE audit.events, audit.leaves, audit.subtrees, audit.checkpoints, audit.unsealed")
    for removed in trail.backend.keys("audit/"):
        trail.objects.delete(removed)
    code, said = await run("--public-key", key)
    assert (code, "none was signed yet, or all of them were removed" in said) == (2, True)
    assert (await run())[0] == 0
