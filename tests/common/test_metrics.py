"""What every service says of itself under `/metrics`."""

import asyncio

from tests.backend import Backend
from tests.metrics import scrape
from tests.registry.running import RunningRegistry, running_registry

_REQUESTS = "stowage_http_request_duration_seconds_count"
_LAG = "stowage_event_loop_lag_seconds"


async def test_requests_are_counted_by_template_and_nothing_that_callers_choose_becomes_a_label(
    backend: Backend,
) -> None:
    async with running_registry(backend) as registry:
        for slug in ("first-name", "second-name"):
            assert (await registry.request("GET", f"/job-bundles/{slug}")).status == 404
        assert (await registry.request("GET", "/chosen-path")).status == 404
        assert (await registry.request("PROPFIND", "/job-bundles")).status == 405
        reading = await scrape(registry.session, registry.url)
    found = {"method": "GET", "route": "/job-bundles/{slug}", "status": "404"}
    assert reading.value(_REQUESTS, found) == 2
    assert reading.value(_REQUESTS, {"method": "GET", "route": "unmatched", "status": "404"}) == 1
    assert reading.value(_REQUESTS, {"method": "other", "route": "unmatched", "status": "405"}) == 1
    assert "-name" not in reading.text
    assert "chosen" not in reading.text
    assert "PROPFIND" not in reading.text


async def test_lag_connections_and_process_are_shown(backend: Backend) -> None:
    async with running_registry(backend, database_pool_size=3) as registry:
        before = reading = await scrape(registry.session, registry.url)
        while reading.value(f"{_LAG}_count") <= before.value(f"{_LAG}_count"):
            await asyncio.sleep(0.01)
            reading = await scrape(registry.session, registry.url)
    assert reading.value("stowage_event_loop_lag_max_seconds") > 0
    assert reading.value("stowage_database_connections_max") == 3
    states = [reading.value("stowage_database_connections", {"state": state}) for state in ("used", "idle")]
    assert 1 <= sum(states) <= 3
    assert reading.value("process_resident_memory_bytes") > 0


async def test_applications_in_one_process_count_for_themselves(backend: Backend) -> None:
    async with running_registry(backend) as one, running_registry(backend) as other:
        await _ask(one)
        await _ask(one)
        await _ask(other)
        readings = [await scrape(registry.session, registry.url) for registry in (one, other)]
    labels = {"method": "GET", "route": "/jobs", "status": "200"}
    assert [reading.value(_REQUESTS, labels) for reading in readings] == [2, 1]


async def test_a_scraper_that_prefers_openmetrics_gets_it(backend: Backend) -> None:
    async with running_registry(backend) as registry:
        accept = {"Accept": "application/openmetrics-text; version=1.0.0"}
        answer = await registry.request("GET", "/metrics", token=None, headers=accept)
    assert answer.headers["Content-Type"].startswith("application/openmetrics-text; version=1.0.0")
    assert answer.body.endswith(b"# EOF\n")


async def _ask(registry: RunningRegistry) -> None:
    assert (await registry.request("GET", "/jobs")).status == 200
