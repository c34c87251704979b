"""The objects of one kind that have our labels, as the cluster has them: listed once, and watched from then on."""

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator, Callable
from typing import Any, Generic, TypeVar

from pydantic import ValidationError

from libs.common.log import get_logger
from services.runner.kubernetes.cluster import Cluster, ClusterAway, ClusterRefused, Kind, WatchExpired
from services.runner.kubernetes.shapes import Job, Pod

Item = TypeVar("Item", bound=Job | Pod)

_FIRST_PAUSE_SECONDS = 0.25
_LONGEST_PAUSE_SECONDS = 15.0
_SPREAD = random.Random()  # noqa: S311  # so that replicas don't come back together
_log = get_logger("runner")


class Watched(Generic[Item]):
    """Tells `on_change` of each object that is new, has changed, or is gone (`gone` is set).

    While the API server is away nothing is told; what happened meanwhile is told when it is back, a deletion as well.
    """

    def __init__(
        self,
        cluster: Cluster,
        kind: Kind,
        read: Callable[[Any], Item],
        selector: str,
        on_change: "Callable[[Item, bool], None]",
    ) -> None:
        self._cluster = cluster
        self._kind = kind
        self._read = read
        self._selector = selector
        self._on_change = on_change
        self._known: dict[str, Item] = {}
        self.listed = asyncio.Event()

    @contextlib.asynccontextmanager
    async def watching(self) -> AsyncIterator[None]:
        """Watch for as long as the context is open."""
        task = asyncio.create_task(self._watch())
        try:
            yield
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def _watch(self) -> None:
        version: str | None = None
        pause = _FIRST_PAUSE_SECONDS
        while True:
            try:
                if version is None:
                    version = await self._list()
                async for kind, body in self._cluster.watch(self._kind, self._selector, version):
                    version = body["metadata"]["resourceVersion"]
                    self._hear(kind, body)
                    pause = _FIRST_PAUSE_SECONDS
                continue
            except WatchExpired:
                version = None
                continue
            except (ClusterAway, ClusterRefused) as error:
                _log.warning("cluster_not_watched", kind=self._kind, error=str(error), seconds=pause)
                if isinstance(error, ClusterRefused):
                    version = None
            except Exception:  # noqa: BLE001  # whatever it was, runs go on, and are to be watched
                _log.exception("cluster_not_watched", kind=self._kind)
                version = None
            await asyncio.sleep(pause * _SPREAD.uniform(0.75, 1.25))
            pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)

    async def _list(self) -> str:
        bodies, version = await self._cluster.list(self._kind, self._selector)
        there = {body["metadata"]["uid"] for body in bodies}
        for uid in [uid for uid in self._known if uid not in there]:
            self._on_change(self._known.pop(uid), True)  # noqa: FBT003  # as it was last seen
        for body in bodies:
            self._hear("ADDED", body)
        self.listed.set()
        return version

    def _hear(self, kind: str, body: dict[str, Any]) -> None:
        if kind == "BOOKMARK":
            return
        try:
            item = self._read(body)
        except ValidationError:
            _log.exception("cluster_not_understood", kind=self._kind)
            return
        if kind == "DELETED":
            self._known.pop(item.metadata.uid, None)
        else:
            self._known[item.metadata.uid] = item
        self._on_change(item, kind == "DELETED")
