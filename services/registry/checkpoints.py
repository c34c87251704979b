"""Checkpoints: the root of the tree, signed, and shown to the bucket before anybody else.

What was signed once binds: a new checkpoint is signed only if the tree still begins with that of the newest one in the
bucket. A database that was rolled back, restored from a copy or forked has another tree, and then nothing is signed.
"""

import asyncio
import contextlib
import time
from collections.abc import Sequence
from datetime import timedelta

import asyncpg

from libs.common.completion import in_thread
from libs.common.database import Connection, Pool
from libs.common.errors import Conflict, NotFound, StowageError
from libs.common.log import get_logger
from libs.common.object_errors import ObjectExists
from libs.common.objects import ObjectStore
from services.registry import witness
from services.registry.notes import Checkpoint, InvalidNote, PublicKey, Signer, parse_note, verified
from services.registry.sealing import seal
from services.registry.store import trail
from services.registry.tree import StoredTree, TreeDamaged

_LEAVES_AT_ONCE = 8192
_AWAY = (
    StowageError,
    asyncpg.PostgresError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,
    OSError,
    TimeoutError,
)

_log = get_logger("registry")


class TrailInconsistent(Conflict):
    """The tree is not one that continues what was signed before."""

    kind = "audit-trail-inconsistent"


class Checkpoints:
    """The checkpoints of one registry, which signs where it has a key. `earlier` keys signed before that one."""

    def __init__(
        self,
        pool: Pool,
        objects: ObjectStore,
        signer: Signer | None,
        *,
        interval_seconds: float,
        earlier: Sequence[PublicKey] = (),
    ) -> None:
        self._pool = pool
        self._objects = objects
        self._signer = signer
        self._earlier = tuple(earlier)
        self._interval = timedelta(seconds=interval_seconds)
        self._compared = False
        self._refused_at = 0.0
        self.refusal: str | None = None

    @property
    def public_key(self) -> PublicKey:
        """What checks the signatures; NotFound where nothing is signed."""
        if self._signer is None:
            raise NotFound(
                "this registry has no key, so nothing of its audit trail is signed. Make one with “python -m "
                "services.registry audit-key --key-file FILE”, and name it in STOWAGE_REGISTRY_AUDIT_KEY_FILE.",
                kind="audit-not-signed",
            )
        return self._signer.public

    async def newest(self, connection: Connection) -> trail.SignedCheckpoint:
        """The newest checkpoint. TrailInconsistent while the trail contradicts it, NotFound where there is none."""
        if self.refusal is not None:
            raise TrailInconsistent(self.refusal)
        found = await trail.newest_checkpoint(connection)
        if found is None:
            self.public_key  # noqa: B018  # raises where there never will be one
            raise NotFound("no checkpoint has been signed yet; there will be one soon.", kind="no-checkpoint")
        return found

    async def sign_if_due(self) -> None:
        """Sign the tree as it is, if it has grown and the last checkpoint is old enough.

        Raises TrailInconsistent instead where the tree does not continue what is in the bucket, also on the first call.
        """
        if self._signer is None:
            return
        async with self._pool.acquire() as connection:
            if not await self._due(connection):
                return
        try:
            await self._sign(self._signer)
        except (TrailInconsistent, TreeDamaged, InvalidNote) as error:
            self.refusal, self._refused_at = str(error), time.monotonic()
            raise TrailInconsistent(self.refusal) from error
        self.refusal = None
        self._compared = True

    async def _due(self, connection: Connection) -> bool:
        newest = await trail.newest_checkpoint(connection)
        size = await trail.tree_size(connection)
        if self.refusal is not None:
            return time.monotonic() - self._refused_at >= self._interval.total_seconds()
        if not self._compared or newest is None:
            return size > 0
        return size != newest.tree_size and await trail.now(connection) - newest.at >= self._interval

    async def _sign(self, signer: Signer) -> None:
        async with self._pool.acquire() as connection:
            known = await trail.newest_checkpoint(connection)
        # The bucket is asked first: what it has, the tree that is read afterwards must have as well.
        witnessed = await in_thread(self._witnessed, known.tree_size if known else 0)
        async with self._pool.acquire() as connection:
            size = await trail.tree_size(connection)
            tree = StoredTree(connection)
            for note, place in ((known.note if known else None, "database"), (witnessed, "bucket")):
                if note is not None:
                    await self._require_continuation(tree, size, self._signed(note, signer, place))
            checkpoint = Checkpoint(signer.public.origin, size, await tree.root(size))
        start = parse_note(witnessed).tree_size if witnessed else 0
        if size > start:
            witnessed = await self._show(checkpoint, signer, start)
        if witnessed:
            async with self._pool.acquire() as connection:
                await trail.insert_checkpoint(connection, size, checkpoint.root, witnessed)

    def _witnessed(self, known_size: int) -> str | None:
        """The note of the newest checkpoint in the bucket. Blocks."""
        newest = max(witness.checkpoint_sizes(self._objects, least=known_size), default=None)
        if newest is None:  # a bucket that was replaced has none as new as the database's
            newest = max(witness.checkpoint_sizes(self._objects), default=None)
        if newest is None:
            return None
        note = witness.read_checkpoint(self._objects, newest)
        try:
            parse_note(note)
        except InvalidNote as error:
            key = witness.checkpoint_key(newest)
            raise TrailInconsistent(f"{key} in the bucket can't be continued: {error}") from None
        return note

    def _signed(self, note: str, signer: Signer, place: str) -> Checkpoint:
        """The checkpoint in a note that this registry signed; TrailInconsistent where somebody else did."""
        origin, checkpoint = signer.public.origin, parse_note(note)
        if checkpoint.origin != origin:
            raise TrailInconsistent(
                f"the newest checkpoint is of the audit trail “{checkpoint.origin}”, and this one is “{origin}”. Set "
                "STOWAGE_REGISTRY_AUDIT_ORIGIN to what it was, or begin with another bucket."
            )
        try:
            return verified(note, [signer.public, *self._earlier])
        except InvalidNote as error:
            raise TrailInconsistent(
                f"the newest checkpoint in the {place}, of {checkpoint.tree_size} events, is not signed with this "
                f"registry's key: {error} Somebody else wrote it; or the key was changed, and then the public half of "
                "the earlier one belongs into STOWAGE_REGISTRY_AUDIT_EARLIER_KEYS."
            ) from None

    async def _require_continuation(self, tree: StoredTree, size: int, earlier: Checkpoint) -> None:
        if size < earlier.tree_size:
            raise TrailInconsistent(
                f"a checkpoint of {earlier.tree_size} events was signed, but the audit trail has {size}: its newest "
                "events were removed, or the database was restored from an older copy. Nothing is signed until they "
                "are back; “python -m services.registry audit-verify” says more."
            )
        if await tree.root(earlier.tree_size) != earlier.root:
            raise TrailInconsistent(
                f"the first {earlier.tree_size} events of the audit trail are not those that a checkpoint was signed "
                "of: they were changed, or the database is another one. Nothing is signed until they are what they "
                "were; “python -m services.registry audit-verify” names the first."
            )

    async def _show(self, checkpoint: Checkpoint, signer: Signer, start: int) -> str:
        """Write to the bucket what came since `start`, and then the checkpoint, signed; the note that is there then."""
        size, note = checkpoint.tree_size, signer.sign(checkpoint)
        for first in range(start, size, _LEAVES_AT_ONCE):
            async with self._pool.acquire() as connection:
                hashes = await trail.hashes_of(connection, 0, first, min(first + _LEAVES_AT_ONCE, size))
            await in_thread(witness.write_leaves, self._objects, first, [hashes[at] for at in sorted(hashes)])
        try:
            await in_thread(witness.write_checkpoint, self._objects, size, note)
        except ObjectExists:
            note = await in_thread(witness.read_checkpoint, self._objects, size)
            if self._signed(note, signer, "bucket").root != checkpoint.root:
                raise TrailInconsistent(
                    f"another registry signed another audit trail of {size} events. Only one database may write to "
                    "one bucket."
                ) from None
        _log.info("audit_checkpoint_signed", tree_size=size)
        return note


async def seal_regularly(pool: Pool, checkpoints: Checkpoints, *, interval_seconds: float) -> None:
    """Seal and sign every so often, for as long as the task runs. What is away is tried again next time."""
    with contextlib.suppress(NotFound):
        _log.info("audit_key", public_key=str(checkpoints.public_key))
    while True:
        try:
            await seal(pool)
            await checkpoints.sign_if_due()
        except (TrailInconsistent, TreeDamaged) as error:
            _log.error("audit_trail_inconsistent", error=str(error))
        except _AWAY as error:
            _log.warning("audit_not_sealed", error=str(error) or type(error).__name__)
        await asyncio.sleep(interval_seconds)
