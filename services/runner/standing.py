"""Whether a version may be run: what its status at the registry means when a run is asked for, and before it starts."""

import asyncio
import time
from collections import OrderedDict

from libs.common.client import RegistryClient, ServiceError
from libs.common.errors import Conflict, Unavailable
from libs.common.models import Resolution, VersionStatus
from libs.common.standing import told
from services.runner.endings import RunFailed

_ASK_SECONDS = 2.0
_CAPACITY = 4096


def refuse_new_run(found: Resolution, *, pinned: bool, allow_yanked: bool) -> Conflict | None:
    """Why no new run may be of this version, or None where one may.

    `pinned`: whether it was asked for by its digest. `allow_yanked`: whether who asks insists.
    """
    match found.status:
        case VersionStatus.QUARANTINED:
            advice = "It can't be run until an administrator releases it. Choose another version."
        case VersionStatus.YANKED if not allow_yanked:
            advice = "New runs of it are refused. Choose another version, or say allowYanked: true if it must be it."
        case VersionStatus.DEPRECATED if not pinned:
            name = f"{found.slug}@{found.artifact.digest}"
            advice = f"New runs of it are refused. Choose another version, or name its digest if it must be it: {name}."
        case _:
            return None
    return Conflict(
        f"{told(found)} {advice}",
        kind=f"version-{found.status}",
        digest=found.artifact.digest,
        statusReason=found.status_reason,
        statusBy=found.status_by,
    )


class Standing:
    """Asks the registry what versions are, and remembers for a while that one is not quarantined.

    That is for runs that were accepted earlier: none is begun later than `seconds` after the registry had answered that
    the version is quarantined, as long as the registry can be asked.
    """

    def __init__(self, registry: RegistryClient, *, seconds: float) -> None:
        self._registry = registry
        self._seconds = seconds
        self._fine_until: OrderedDict[tuple[str, str], float] = OrderedDict()
        self._silent_until = 0.0

    async def resolve(self, slug: str, reference: str) -> Resolution:
        """What a reference means right now; ServiceError or Unavailable as the registry's client."""
        asked = time.monotonic()
        found = await self._registry.resolve(slug, reference)
        key = (slug, found.artifact.digest)
        if found.status is not VersionStatus.QUARANTINED:
            self._fine_until[key] = asked + self._seconds
            self._fine_until.move_to_end(key)
            while len(self._fine_until) > _CAPACITY:
                self._fine_until.popitem(last=False)
        return found

    async def require_released(self, slug: str, digest: str) -> None:
        """Raise RunFailed where the version is quarantined, and Unavailable where the registry does not say."""
        now = time.monotonic()
        if self._fine_until.get((slug, digest), 0.0) > now:
            return
        if now < self._silent_until:
            raise Unavailable("it did not answer a moment ago")
        try:
            async with asyncio.timeout(_ASK_SECONDS):
                found = await self.resolve(slug, digest)
        except (TimeoutError, Unavailable) as error:
            self._silent_until = time.monotonic() + self._seconds
            raise Unavailable(str(error) or f"it did not answer within {_ASK_SECONDS:g} seconds") from error
        except ServiceError as error:
            raise Unavailable(error.message) from error
        if found.status is VersionStatus.QUARANTINED:
            raise RunFailed(
                "version_quarantined",
                f"{told(found)} That was after the run was accepted; nothing was executed. Choose another version.",
            )
