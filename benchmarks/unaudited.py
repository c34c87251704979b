"""The registry without its audit trail, to compare with: `python -m benchmarks.unaudited serve`.

Appending an event does nothing at all, so there is nothing to seal or to sign either.
"""

import sys

from libs.common import audit
from libs.common.database import Connection
from services.registry.__main__ import main


async def _append_nothing(connection: Connection, origin: audit.Origin, event: audit.Event) -> int:
    return 0


if __name__ == "__main__":
    audit.append = _append_nothing
    sys.exit(main())
