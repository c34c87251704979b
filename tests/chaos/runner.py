"""The runner as a program whose wall clock a test may set, and whose housekeeping comes round every second.

SETTLED_SECONDS after the end of a run nobody is expected to write anything of it any more, 2 by default.
The variable CLOCK_FILE names a file with the seconds by which the clock is off; without it the clock is right.
"""

import datetime
import os
import sys
import time
from pathlib import Path

_RIGHT_TIME = time.time
_RIGHT_CLASS = datetime.datetime


def _seconds_off() -> float:
    return float(Path(os.environ["CLOCK_FILE"]).read_text())


class _ShiftedDatetime(_RIGHT_CLASS):
    @classmethod
    def now(cls, tz: datetime.tzinfo | None = None) -> datetime.datetime:  # type: ignore[override]
        return _RIGHT_CLASS.now(tz) + datetime.timedelta(seconds=_seconds_off())

    @classmethod
    def utcnow(cls) -> datetime.datetime:  # type: ignore[override]
        return cls.now(datetime.UTC).replace(tzinfo=None)


def _shift_clock() -> None:
    """Before anything else is imported, so that nobody has the right clock."""
    time.time = lambda: _RIGHT_TIME() + _seconds_off()
    datetime.datetime = _ShiftedDatetime  # type: ignore[misc]


if __name__ == "__main__":
    if "CLOCK_FILE" in os.environ:
        _shift_clock()
    from services.runner import app, logs, uploads
    from services.runner.__main__ import main

    app._TIDY_SECONDS = 1.0
    logs._SETTLED_SECONDS = uploads._SETTLED_SECONDS = float(os.environ.get("SETTLED_SECONDS", "2"))
    sys.exit(main())
