"""Lines of the log as they leave the process."""

import json
import subprocess
import sys

_PROGRAM = """
import sys
from libs.common.log import configure_logging, get_logger, log_request
configure_logging(log_format=sys.argv[1], level=sys.argv[2])
log = get_logger("test")
fields = dict(method="GET", path='/a"b\\\\ü\\n\\ud800', status=200, ms=1.5, actor=None, request_id="req_1")
for actor in (None, 'ann "ü"'):
    fields["actor"] = actor
    log.info("request", **fields)
    log_request(log, **fields)
"""


def _lines(log_format: str, level: str) -> list[str]:
    command = [sys.executable, "-c", _PROGRAM, log_format, level]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout.splitlines()


def test_the_line_of_a_request_is_what_any_event_would_be() -> None:
    lines = [json.loads(line) for line in _lines("json", "info")]
    assert len(lines) == 4
    for line in lines:
        assert line.pop("timestamp").endswith("Z")
    assert lines[0] == lines[1]
    assert lines[2] == lines[3]
    assert list(lines[0]) == list(lines[1])
    assert (lines[1]["path"], lines[1]["level"], lines[3]["actor"]) == ('/a"b\\ü\n\ud800', "info", 'ann "ü"')


def test_it_is_a_line_for_a_person_on_a_console() -> None:
    assert sum("request_id=req_1" in line for line in _lines("console", "info")) == 4


def test_it_is_not_there_where_less_is_logged() -> None:
    assert _lines("json", "warning") == []
