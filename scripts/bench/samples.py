"""What was measured, round by round, and how it is summed up."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

# What one measurement gives: figures by name, with units in the names.
Figures = dict[str, float]


@dataclass
class Samples:
    """By scenario, proxy and figure, one value for each round."""

    values: dict[str, dict[str, dict[str, list[float]]]] = field(default_factory=dict)

    def add(self, scenario: str, proxy: str, figures: Figures) -> None:
        place = self.values.setdefault(scenario, {}).setdefault(proxy, {})
        for name, value in figures.items():
            place.setdefault(name, []).append(value)

    def of(self, scenario: str, proxy: str, figure: str) -> list[float]:
        """All rounds; nothing if it was not measured."""
        return self.values.get(scenario, {}).get(proxy, {}).get(figure, [])

    def median(self, scenario: str, proxy: str, figure: str) -> float | None:
        values = self.of(scenario, proxy, figure)
        return statistics.median(values) if values else None

    def ratios(self, scenario: str, proxy: str, peer: str, figure: str) -> list[float]:
        """What each round says by itself: a disturbance that lasts hits both."""
        pairs = zip(self.of(scenario, proxy, figure), self.of(scenario, peer, figure), strict=False)
        return [ours / theirs for ours, theirs in pairs if theirs > 0.0]

    def differences(self, scenario: str, proxy: str, peer: str, figure: str) -> list[float]:
        """As `ratios`, for what is added rather than multiplied."""
        pairs = zip(self.of(scenario, proxy, figure), self.of(scenario, peer, figure), strict=False)
        return [ours - theirs for ours, theirs in pairs]

    def best(
        self, scenario: str, proxies: Iterable[str], figure: str, wants_more: bool
    ) -> str | None:
        """Which of these has the best median."""
        medians = {p: m for p in proxies if (m := self.median(scenario, p, figure)) is not None}
        if not medians:
            return None
        return (max if wants_more else min)(medians, key=lambda proxy: medians[proxy])


def spread(values: Sequence[float], digits: int) -> str:
    """The median, and between what values it lies."""
    if not values:
        return ""
    middle = f"{statistics.median(values):,.{digits}f}"
    if len(values) == 1:
        return middle
    return f"{middle} ({min(values):,.{digits}f}–{max(values):,.{digits}f})"
