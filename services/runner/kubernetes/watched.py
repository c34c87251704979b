"""The objects of one kind that have our labels, as the cluster has them: listed once, and watched from then on."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from typing import Any, Generic, TypeVar

from pydantic import ValidationError

from libs.common.background import beside
from libs.common.log import get_logger
from services.runner.kubernetes.cluster import Cluster, ClusterAway, ClusterRefused, Kind, WatchExpired
from services.runner.kubernetes.pauses import Pauses
from services.runner.kubernetes.shapes import Job, Pod

Item = TypeVar("Item", bound=Job | Pod)

_LONGEST_PAUSE_SECONDS = 15.0
_LIVED_SECONDS = 5.0
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
        async with beside(self._watch()):
            yield

    async def _watch(self) -> None:
        version: str | None = None
        pauses = Pauses(_LONGEST_PAUSE_SECONDS)
        loop = asyncio.get_running_loop()
        while True:
            began = loop.time()
            retry_after_seconds = None
            try:
                if version is None:
                    version = await self._list()
                    began = loop.time()
                async for kind, body in self._cluster.watch(self._kind, self._selector, version):
                    version = body["metadata"]["resourceVersion"]
                    self._hear(kind, body)
                    pauses.reset()
            except WatchExpired:
                version = None
            except ClusterAway as error:
                _log.warning("cluster_not_watched", kind=self._kind, error=str(error))
                retry_after_seconds = error.retry_after_seconds
            except ClusterRefused as error:
                _log.warning("cluster_not_watched", kind=self._kind, error=str(error))
                version = None
            except Exception:  # noqa: BLE001  # whatever it was, runs go on, and are to be watched
                _log.exception("cluster_not_watched", kind=self._kind)
                version = None
            if loop.time() - began >= _LIVED_SECONDS:
                pauses.reset()
            # However it ended: what ends each watch at once, or has always forgotten, is not asked in a loop.
            await asyncio.sleep(pauses.next(retry_after_seconds))

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
