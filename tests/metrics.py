"""Reading what `/metrics` says."""

from collections.abc import Mapping

import aiohttp
from prometheus_client.parser import text_string_to_metric_families


class Reading:
    """The samples of one scrape."""

    def __init__(self, text: str) -> None:
        self.text = text
        self._samples = {
            (sample.name, frozenset(sample.labels.items())): sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        }

    def value(self, name: str, labels: Mapping[str, str] | None = None) -> float:
        """One sample; KeyError where there is none with just these labels."""
        return self._samples[name, frozenset((labels or {}).items())]

    def buckets(self, name: str) -> list[float]:
        """The counts of a histogram without labels, by rising upper bound."""
        found = {
            float(dict(labels)["le"]): value
            for (sample, labels), value in self._samples.items()
            if sample == f"{name}_bucket"
        }
        return [found[bound] for bound in sorted(found)]


async def scrape(session: aiohttp.ClientSession, url: str) -> Reading:
    """What a service says of itself, asked without a token as Prometheus would."""
    async with session.get(f"{url}/metrics") as response:
        assert response.status == 200
        assert response.content_type == "text/plain"
        return Reading(await response.text())
