"""Events get their places in the tree: each once, in the order of sealing, whatever commits when."""

import asyncio
import base64
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from libs.common import audit
from services.registry import evidence
from services.registry.__main__ import main
from services.registry.canonical import hash_of_event
from services.registry.merkle import Frontier, is_consistent, root_from_inclusion
from services.registry.notes import Checkpoint, InvalidNote, PublicKey, Signer, parse_note, read_or_make_key, verified
from services.registry.sealing import seal
from services.registry.store import trail as store
from services.registry.tree import StoredTree, TreeDamaged
from tests.backend import Backend
from tests.registry.running import running_registry
from tests.registry.trail import ORIGIN, Trail, opened_trail


@pytest.fixture
async def trail(backend: Backend, tmp_path: Path) -> AsyncIterator[Trail]:
    """An empty audit trail."""
    async with opened_trail(backend, tmp_path) as opened:
        yield opened


async def _order(trail: Trail) -> list[int]:
    rows = await trail.backend.fetch("SELECT position, event_id FROM audit.leaves ORDER BY position")
    assert [row["position"] for row in rows] == list(range(len(rows)))
    return [row["event_id"] for row in rows]


async def test_a_transaction_that_commits_late_is_sealed_then_and_moves_nobody(trail: Trail) -> None:
    async with trail.pool.acquire() as slow:
        transaction = slow.transaction()
        await transaction.start()
        late = await audit.append(slow, audit.Origin("slow"), audit.Event("late", "hello"))
        early = await trail.append(3)
        assert late < early[0]
        assert await seal(trail.pool) == 3  # nobody waits for what may still be rolled back
        assert await _order(trail) == early
        await transaction.commit()
    more = await trail.append(1)
    assert await seal(trail.pool) == 2
    assert await _order(trail) == [*early, late, *more]
    assert await seal(trail.pool) == 0


async def test_an_event_that_was_rolled_back_has_no_place(trail: Trail) -> None:
    async with trail.pool.acquire() as connection:
        transaction = connection.transaction()
        await transaction.start()
        await audit.append(connection, audit.Origin("nobody"), audit.Event("never", "hello"))
        await transaction.rollback()
    kept = await trail.append(2)
    await seal(trail.pool)
    assert await _order(trail) == kept


async def test_sealers_at_once_seal_everything_once(trail: Trail) -> None:
    stop = asyncio.Event()

    async def keep_sealing() -> None:
        while not stop.is_set():
            await seal(trail.pool)

    sealers = [asyncio.create_task(keep_sealing()) for _ in range(3)]
    appended = await asyncio.gather(*(trail.append(150) for _ in range(4)))
    stop.set()
    await asyncio.gather(*sealers)
    await seal(trail.pool)
    assert sorted(await _order(trail)) == sorted(identifier for some in appended for identifier in some)
    assert await trail.backend.fetch("SELECT FROM audit.unsealed") == []
    # Through more than two kept hashes, the tree is what its events make it.
    frontier = Frontier()
    async with trail.pool.acquire() as connection, connection.transaction():
        roots = []
        async for leaf in store.all_leaves(connection):
            assert leaf.event is not None
            assert leaf.leaf_hash == hash_of_event(leaf.event)
            frontier.append(leaf.leaf_hash)
            roots.append(frontier.root)
        tree = StoredTree(connection)
        assert len(roots) == 600
        for size in (1, 2, 255, 256, 257, 511, 512, 513, 600):
            assert await tree.root(size) == roots[size - 1]


async def test_proofs_lead_to_the_signed_root(trail: Trail) -> None:
    identifiers = await trail.grow(300, 220)
    checkpoints = trail.checkpoints()
    async with trail.pool.acquire() as connection:
        for identifier in (identifiers[0], identifiers[255], identifiers[256], identifiers[299], identifiers[519]):
            proof = await evidence.prove_inclusion(connection, checkpoints, identifier)
            signed = verified(proof.checkpoint, [trail.signer.public])
            hashes = [base64.b64decode(hashed) for hashed in proof.hashes]
            leaf = base64.b64decode(proof.leaf_hash)
            assert (proof.tree_size, signed.tree_size) == (520, 520)
            assert root_from_inclusion(proof.leaf_index, proof.tree_size, leaf, hashes) == signed.root
        for first, second in ((1, 2), (256, 300), (300, 520), (257, 519), (520, 520)):
            between = await evidence.prove_consistency(connection, first, second)
            hashes = [base64.b64decode(hashed) for hashed in between.hashes]
            roots = base64.b64decode(between.first_root), base64.b64decode(between.second_root)
            assert is_consistent(first, second, *roots, hashes)
        await trail.as_owner("DELETE FROM audit.leaves WHERE position = 515")
        with pytest.raises(TreeDamaged, match="no leaf 515"):
            await evidence.prove_inclusion(connection, checkpoints, identifiers[519])


def test_a_note_says_what_was_signed_by_whom(tmp_path: Path) -> None:
    for name in ("own.pem", "other.pem"):
        read_or_make_key(tmp_path / name)
    own, other = (Signer.from_file(ORIGIN, tmp_path / name) for name in ("own.pem", "other.pem"))
    assert (tmp_path / "own.pem").stat().st_mode & 0o777 == 0o600
    checkpoint = Checkpoint(ORIGIN, 7, b"\x01" * 32)
    note = own.sign(checkpoint)
    key = PublicKey.parse(f"{own.public}\n")
    assert verified(note, [other.public, key]) == checkpoint
    wrong = {
        "none of the given keys": (note, [other.public]),
        "not of this text": (note.replace("\n7\n", "\n8\n"), [key]),
        "no signed note": (note.rstrip("\n"), [key]),
        "no checkpoint": (note.replace("\n7\n", "\n07\n"), [key]),
        "32 bytes": (note.replace("AQEB", "", 1), [key]),
    }
    for message, (text, keys) in wrong.items():
        with pytest.raises(InvalidNote, match=message):
            verified(text, keys)
    for text in ("", "a+b", str(own.public).replace("+", "+00", 1), f"{own.public}x"):
        with pytest.raises(InvalidNote, match="public key"):
            PublicKey.parse(text)
    (tmp_path / "no.pem").write_text("no key")
    with pytest.raises(InvalidNote, match="no Ed25519 key"):
        Signer.from_file(ORIGIN, tmp_path / "no.pem")
    with pytest.raises(InvalidNote, match="origin"):
        Signer("a b", own._key)


async def test_a_checkpoint_is_in_the_bucket_before_it_is_shown(trail: Trail) -> None:
    await trail.grow(2)
    (key,) = trail.backend.keys("audit/checkpoints/")
    assert key == "audit/checkpoints/0000000000000002.txt"
    assert trail.backend.keys("audit/leaves/") == ["audit/leaves/0000000000000000-0000000000000002.bin"]
    # Stopped between the bucket and the database: the next one takes over what was signed.
    await trail.as_owner("DELETE FROM audit.checkpoints")
    await trail.sign()
    (row,) = await trail.backend.fetch("SELECT tree_size, note FROM audit.checkpoints")
    assert row["tree_size"] == 2
    with trail.objects.read(key) as body:
        assert b"".join(body).decode() == row["note"]
    await trail.sign()
    assert len(trail.backend.keys("audit/checkpoints/")) == 1  # nothing new


@pytest.mark.parametrize(
    ("tampering", "message"),
    [
        (
            [
                "DELETE FROM audit.events WHERE id > 3",
                "DELETE FROM audit.leaves WHERE event_id > 3",
                "DELETE FROM audit.checkpoints WHERE tree_size > 3",
            ],
            "a checkpoint of 5 events was signed, but the audit trail has 3",
        ),
        (["UPDATE audit.leaves SET hash = sha256('') WHERE position = 1"], "first [35] events"),
        (["DELETE FROM audit.leaves WHERE position = 1"], "no leaf 1"),
    ],
)
async def test_what_contradicts_the_bucket_is_not_signed(trail: Trail, tampering: list[str], message: str) -> None:
    await trail.grow(3, 2)
    await trail.as_owner(*tampering)
    restarted = trail.checkpoints()
    for _ in range(2):
        with pytest.raises(Exception, match=message):
            await restarted.sign_if_due()
    assert restarted.refusal
    # Other events in the place of those that are gone don't help either.
    await trail.append(4)
    with pytest.raises(Exception, match=r"first [35] events|no leaf 1"):
        await trail.sign()
    assert len(trail.backend.keys("audit/checkpoints/")) == 2


async def test_nothing_is_signed_beside_what_another_database_signed(trail: Trail) -> None:
    await trail.grow(2)
    foreign = Signer("stowage/other", trail.signer._key)
    await trail.append(1)
    await seal(trail.pool)
    with pytest.raises(Exception, match="is of the audit trail “stowage/test”"):
        await trail.checkpoints(foreign).sign_if_due()
    forged = trail.signer.sign(Checkpoint(ORIGIN, 3, b"\0" * 32))
    trail.objects.put("audit/checkpoints/0000000000000003.txt", forged.encode(), content_type="text/plain")
    with pytest.raises(Exception, match="first 3 events"):
        await trail.sign()
    trail.objects.put("audit/checkpoints/0000000000000003.txt", b"no note", content_type="text/plain")
    with pytest.raises(Exception, match=r"003\.txt in the bucket can't be continued"):
        await trail.sign()


async def test_what_somebody_else_signed_is_not_continued(trail: Trail, tmp_path: Path) -> None:
    """Who can write to both, and has no key, could otherwise have any history signed as the one that always was."""
    await trail.grow(2)
    read_or_make_key(tmp_path / "mallory.pem")
    mallory = Signer.from_file(ORIGIN, tmp_path / "mallory.pem")
    await trail.append(1)
    await seal(trail.pool)
    async with trail.pool.acquire() as connection:
        forged = mallory.sign(Checkpoint(ORIGIN, 3, await StoredTree(connection).root(3)))
    trail.objects.put("audit/checkpoints/0000000000000003.txt", forged.encode(), content_type="text/plain")
    checkpoints = trail.checkpoints()
    with pytest.raises(Exception, match="in the bucket, of 3 events, is not signed with this registry's key"):
        await checkpoints.sign_if_due()
    assert checkpoints.refusal
    assert await trail.backend.fetch("SELECT FROM audit.checkpoints WHERE tree_size = 3") == []


async def test_a_new_key_continues_what_the_old_one_signed(trail: Trail, tmp_path: Path) -> None:
    await trail.grow(2)
    read_or_make_key(tmp_path / "next.pem")
    following = Signer.from_file(ORIGIN, tmp_path / "next.pem")
    await trail.append(1)
    await seal(trail.pool)
    with pytest.raises(Exception, match="belongs into STOWAGE_REGISTRY_AUDIT_EARLIER_KEYS"):
        await trail.checkpoints(following).sign_if_due()
    await trail.checkpoints(following, trail.signer.public).sign_if_due()
    notes = [row["note"] for row in await trail.backend.fetch("SELECT note FROM audit.checkpoints ORDER BY tree_size")]
    assert [verified(note, [trail.signer.public, following.public]).tree_size for note in notes] == [2, 3]


async def test_a_registry_seals_signs_and_proves(backend: Backend, tmp_path: Path) -> None:
    read_or_make_key(tmp_path / "audit.pem")
    settings = {"audit_key_file": tmp_path / "audit.pem", "audit_seal_seconds": 0.02, "audit_checkpoint_seconds": 0.02}
    async with running_registry(backend, **settings) as registry:
        await registry.request("POST", "/tokens", json={"subject": "x", "scopes": ["bundles:read"]})
        (last,) = await backend.fetch("SELECT max(id) AS id FROM audit.events")
        async with asyncio.timeout(20):
            while (proof := await registry.request("GET", f"/audit/events/{last['id']}/proof")).status != 200:
                assert proof.status in (404, 409)
                await asyncio.sleep(0.02)
        key = PublicKey.parse((await registry.request("GET", "/audit/key")).body.decode())
        assert key.origin == f"stowage/{backend.bucket}"
        note = (await registry.request("GET", "/audit/checkpoint")).body.decode()
        assert verified(note, [key]) == parse_note(proof.json["checkpoint"])
        assert (await registry.request("GET", f"/audit/events/{last['id']}")).json["action"] == "token.created"
        answer = (await registry.request("GET", "/audit/consistency", params={"from": "1"})).json
        assert (answer["from"], answer["to"]) == (1, parse_note(note).tree_size)
        for path, status in {
            "/audit/events/0": 404,
            "/audit/events/x": 404,
            f"/audit/events/{2**63}": 404,
            f"/audit/events/{last['id'] + 1}/proof": 404,
            "/audit/consistency?from=1&to=999": 409,
            "/audit/consistency?from=2&to=1": 400,
            "/audit/consistency?from=0": 400,
            "/audit/consistency": 400,
        }.items():
            assert (await registry.request("GET", path)).status == status, path


async def test_without_a_key_events_are_sealed_and_nothing_is_signed(backend: Backend) -> None:
    async with running_registry(backend, audit_seal_seconds=0.02) as registry:
        async with asyncio.timeout(20):
            while not await backend.fetch("SELECT FROM audit.leaves"):  # noqa: ASYNC110  # nobody tells
                await asyncio.sleep(0.02)
        for path in ("/audit/checkpoint", "/audit/key", "/audit/events/1/proof"):
            answer = await registry.request("GET", path)
            assert (answer.status, answer.json["type"]) == (404, "urn:stowage:problem:audit-not-signed")
            assert "audit-key" in answer.json["detail"]
        assert registry.keys() == []


def test_command_makes_a_key_once_and_says_its_public_half(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "audit.pem"
    arguments = ["audit-key", "--key-file", str(path), "--origin", ORIGIN]
    assert main(arguments) == 0
    said = capsys.readouterr().out
    assert str(Signer.from_file(ORIGIN, path).public) == said.strip()
    assert main(arguments) == 0
    assert capsys.readouterr().out == said
    assert main(["audit-key", "--key-file", str(path), "--origin", "a b"]) == 1
    assert "origin" in capsys.readouterr().err
