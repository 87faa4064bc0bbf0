"""Prometheus' text format, as far as the service speaks it: samples, and percentiles of its histograms."""

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass

SAMPLE = re.compile(r"^(?P<name>[a-zA-Z_:][\w:]*)(?:\{(?P<labels>.*)\})?\s+(?P<value>\S+)(?:\s+\S+)?$")
LABEL = re.compile(r'(\w+)="((?:\\.|[^"\\])*)"')
ESCAPED = re.compile(r"\\(.)")


@dataclass(frozen=True)
class Sample:
    name: str
    labels: dict[str, str]
    value: float


@dataclass(frozen=True)
class Exposition:
    """One look at /metrics."""

    samples: tuple[Sample, ...]

    @classmethod
    def parse(cls, text: str) -> "Exposition":
        return cls(tuple(_sample(line) for line in text.split("\n") if line.strip() and not line.startswith("#")))

    def total(self, name: str, **labels: str) -> float:
        return sum(sample.value for sample in self.of(name, **labels))

    def by(self, name: str, label: str) -> dict[str, float]:
        """Sums of the samples of one name, by one of their labels."""
        sums: dict[str, float] = {}
        for sample in self.of(name):
            key = sample.labels.get(label, "")
            sums[key] = sums.get(key, 0.0) + sample.value
        return sums

    def of(self, name: str, **labels: str) -> Iterable[Sample]:
        return (each for each in self.samples if each.name == name and labels.items() <= each.labels.items())

    def counts(self, name: str, **labels: str) -> list[tuple[float, float]]:
        """A histogram as (upper bound, observations at or below it), in order."""
        bounds: dict[float, float] = {}
        for sample in self.of(f"{name}_bucket", **labels):
            bound = float(sample.labels["le"].replace("+Inf", "inf"))
            bounds[bound] = bounds.get(bound, 0.0) + sample.value
        return sorted(bounds.items())

    def percentile(self, name: str, share: float, **labels: str) -> float | None:
        """Linear within its bucket, as Prometheus' histogram_quantile; None without observations."""
        counts = self.counts(name, **labels)
        if not counts or not counts[-1][1]:
            return None
        rank, low, below = share * counts[-1][1], 0.0, 0.0
        for bound, count in counts:
            if count >= rank and count > below:
                return low if math.isinf(bound) else low + (bound - low) * (rank - below) / (count - below)
            low, below = bound, count
        return low


def _sample(line: str) -> Sample:
    found = SAMPLE.match(line)
    if not found:
        raise ValueError(f"not a line of Prometheus' text format: {line[:80]!r}")
    labels = {name: _plain(value) for name, value in LABEL.findall(found["labels"] or "")}
    return Sample(found["name"], labels, float(found["value"]))


def _plain(value: str) -> str:
    return ESCAPED.sub(lambda found: "\n" if found[1] == "n" else found[1], value)
