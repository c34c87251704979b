"""`make demo`, as a newcomer meets it."""

import re
import socket
from pathlib import Path
from xml.etree import ElementTree

import psutil
import pytest

from infra.local.home import Home
from infra.local.ports import Ports
from tests.e2e.stack import REPOSITORY, Place, archives_below, new_place, run_local, stack_up

_BUNDLES = [
    "observatory-data-generator",
    "observatory-duckdb-loader",
    "observatory-inbox-normalizer",
    "observatory-report-publisher",
    "observatory-visualization-runner",
]

pytestmark = pytest.mark.timeout(900)


async def test_demo_shows_its_result_twice_and_stops_cleanly(tmp_path: Path) -> None:
    place = new_place(tmp_path)
    code, first = await run_local(place, "demo", "--once")
    assert code == 0, first
    for slug in _BUNDLES:
        assert re.search(rf"{slug} +[\d.]+ s +done +0\.1\.0 r1 +sha256:\w+ .* new", first), first
    assert "linux/x64/glibc" in first
    assert f"{place.home.demo}/report.html" in first
    assert re.search(r"S3 admin page .*user admin, password", first)

    code, second = await run_local(place, "demo", "--once")
    assert code == 0, second
    for slug in _BUNDLES:
        assert re.search(rf"{slug} +[\d.]+ s +done +0\.1\.0 r1 +sha256:\w+ .* unchanged", second), second

    assert_report_is_whole(place.home.demo)
    assert_nothing_is_left(place)


def assert_report_is_whole(folder: Path) -> None:
    report = (folder / "report.html").read_text()
    assert "<svg" in report
    for link in re.findall(r'<a [^>]*href="([^"#][^"]*)"', report):
        assert (folder / link).is_file(), link
    for anchor in re.findall(r'<a [^>]*href="#([^"]+)"', report):
        assert f'id="{anchor}"' in report
    plots = sorted(path.name for path in (folder / "plots").iterdir())
    assert plots == ["humidity.svg", "pm25-by-site.svg", "temperature.svg"]
    for path in (folder / "plots").iterdir():
        assert ElementTree.parse(path).getroot().tag.endswith("svg")  # noqa: S314  # our own output
    assert (folder / "status.json").is_file()


def assert_nothing_is_left(place: Place) -> None:
    assert archives_below(REPOSITORY, place.home.path, place.temporary) == []
    left = [path.name for path in place.temporary.iterdir()]
    assert [name for name in left if not name.startswith("runtime-")] == [], "the PostgreSQL wheel keeps a lock there"
    for process in psutil.process_iter(["cmdline"]):
        assert not any(str(place.home.path) in part for part in process.info["cmdline"] or [])
    Ports.from_base(place.port_base).check()


async def test_a_taken_port_is_named_and_nothing_is_started(tmp_path: Path) -> None:
    place = new_place(tmp_path)
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", place.port_base + 2))
        holder.listen()
        code, output = await run_local(place, "demo", "--once")
    assert code == 1
    assert f"port {place.port_base + 2} on 127.0.0.1, meant for builder, is in use" in output
    assert "STOWAGE_PORT_BASE" in output
    assert not place.home.postgres.exists()


async def test_a_second_stack_in_the_same_folder_is_refused(tmp_path: Path) -> None:
    place = new_place(tmp_path)
    async with stack_up(place) as info:
        for name in ("stack.json", "audit.pem"):
            assert (place.home.path / name).stat().st_mode & 0o777 == 0o600
        code, output = await run_local(place, "up")
        assert code == 1
        assert "a stack is already running" in output
        assert info.registry.endswith(str(place.port_base + 1))
    assert Home(place.home.path).running_stack() is None
    assert_nothing_is_left(place)
