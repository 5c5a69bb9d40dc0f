"""What /metrics says, as numbers: a scrape in, a look-up by name and labels out."""

from __future__ import annotations

from collections.abc import Mapping

from prometheus_client.parser import text_string_to_metric_families


class Scrape:
    """The samples of one scrape."""

    def __init__(self, text: str) -> None:
        self.samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]

    def value(self, name: str, **labels: str) -> float:
        """The sum of the samples of a name that have these labels, and perhaps more; 0 when there are none."""
        return sum(value for _, value in self.found(name, **labels))

    def found(self, name: str, **labels: str) -> list[tuple[Mapping[str, str], float]]:
        """Those samples."""
        return [
            (one.labels, one.value)
            for one in self.samples
            if one.name == f"nvr_rag_{name}" and labels.items() <= one.labels.items()
        ]
