"""The holder of a lease: the one place from which an attempt's run is written to, whoever makes the attempt."""

import asyncio
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass

from libs.common.database import Pool
from libs.common.errors import Unavailable
from libs.common.journal import JournalWriter
from libs.common.models import Artifact, InputSource, Limits
from libs.common.objects import ObjectStore
from services.runner import store
from services.runner.fetching import PlannedInput, plan_inputs
from services.runner.holder import Order, Provision
from services.runner.interrupts import Interrupts
from services.runner.persistence import best_effort, persistently
from services.runner.sandbox.layers import Confinement
from services.runner.secrets import SecretProvider, resolve
from services.runner.standing import Standing
from services.runner.store import Assignment, Timings
from services.runner.uploads import Uploads

_SHOWN_AFTER_SECONDS = 0.05


@dataclass(frozen=True, slots=True)
class Stock:
    """Where the runner has from what attempts are given, and keeps what comes of them."""

    pool: Pool
    objects: ObjectStore
    secrets: Sequence[SecretProvider]
    standing: Standing
    uploads: Uploads


class LeaseHolder:
    """A `Holder`, in the runner's own process."""

    def __init__(self, stock: Stock, run: Assignment, log: JournalWriter, interrupts: Interrupts) -> None:
        self._stock = stock
        self.run = run
        self.log = log
        self.interrupts = interrupts
        self.objects = stock.objects

    @property
    def order(self) -> Order:
        """What is to be executed."""
        run = self.run
        return Order(
            run.id,
            run.attempts,
            run.slug,
            run.version,
            run.digest,
            Artifact.model_validate(run.artifact),
            Limits.model_validate(run.limits),
            run.parameters,
        )

    async def provide(self) -> Provision:
        """Secrets and inputs. RunFailed where one is not to be had, or the version is quarantined."""
        secrets = await resolve(self.run.secrets, self._stock.secrets)
        await self.require_released()
        return Provision(secrets, await self._plan_inputs())

    async def require_released(self) -> None:
        """Raise RunFailed where the version is quarantined."""
        run = self.run
        try:
            await self._stock.standing.require_released(run.slug, run.digest)
        except Unavailable as error:  # what was accepted does not depend on the registry
            message = f"the registry did not say whether {run.slug}@{run.version} is quarantined: {error.message}"
            self.log.write("system", message, level="warning")

    async def started(self, timings: Timings, confinement: Confinement | None) -> None:
        """Show that the handler is at work; how it is confined is recorded when the run ends."""
        await asyncio.sleep(_SHOWN_AFTER_SECONDS)  # many handlers have returned before anybody could look
        run = self.run
        async with best_effort("mark_running", run.id), self._stock.pool.acquire() as connection:
            await store.mark_running(connection, run.id, run.lease, timings)

    async def progressed(self, fraction: float | None, message: str | None) -> None:
        """Show how far the handler is."""
        run = self.run
        async with best_effort("set_progress", run.id), self._stock.pool.acquire() as connection:
            await store.set_progress(connection, run.id, run.lease, fraction, message)

    def uploading(self, *, in_parts: bool) -> AbstractAsyncContextManager[None]:
        """Outputs are announced before the first one, and discarded unless all of them are there."""
        return self._stock.uploads.writing(self.run, in_parts=in_parts)

    async def _plan_inputs(self) -> list[PlannedInput]:
        sources = {name: InputSource.model_validate(value) for name, value in self.run.inputs.items()}
        if not sources:
            return []
        return await persistently(
            lambda: plan_inputs(self._stock.pool, sources), what="plan_inputs", run_id=self.run.id
        )
