"""What we want to reach, and whether a run did."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum

from samples import Samples, spread

PEERS = ("nginx", "haproxy", "haproxy-tcp", "envoy")
# TCP mode neither sees events nor headers: whoever streams over HTTP has the others to choose from.
HTTP_PEERS = ("nginx", "haproxy", "envoy")
BODIES = ("down-1m", "up-1m", "down-100m", "up-100m")
# What allocators keep and sockets come and go with: no body of 1 MB hides in it.
FLAT_BYTES = 4 << 20
MIB = 1 << 20


NAMES = {
    "nginx": "nginx",
    "haproxy": "HAProxy",
    "haproxy-tcp": "HAProxy TCP",
    "envoy": "Envoy",
}


class Outcome(Enum):
    """What a run says about a target."""

    MET = "met"
    MISSED = "**missed**"
    # Some rounds say this and some that.
    OPEN = "rounds differ"
    UNKNOWN = "not measured"


@dataclass(frozen=True)
class Verdict:
    """A target and what came of it."""

    what: str
    target: str
    value: str
    outcome: Outcome


def judge(values: Sequence[float], is_good: Callable[[float], bool]) -> Outcome:
    """A verdict is one that every round supports."""
    good = {is_good(value) for value in values}
    if not good:
        return Outcome.UNKNOWN
    if len(good) > 1:
        return Outcome.OPEN
    return Outcome.MET if good.pop() else Outcome.MISSED


def verdicts(samples: Samples) -> list[Verdict]:
    """All targets, in the order in which they are written."""
    found: list[Verdict] = []

    def at_most(
        what: str, values: Sequence[float], limit: float, unit: str, digits: int = 2
    ) -> None:
        said = spread(values, digits) + unit if values else ""
        outcome = judge(values, lambda value: value <= limit)
        found.append(Verdict(what, f"≤ {limit:,g}{unit}", said, outcome))

    def against(
        what: str,
        scenario: str,
        figure: str,
        peers: Sequence[str],
        limit: float,
        wants_more: bool = False,
    ) -> None:
        peer = samples.best(scenario, peers, figure, wants_more)
        ratios = samples.ratios(scenario, "ours", peer, figure) if peer else []
        sign = "≥" if wants_more else "≤"
        name = NAMES[peers[0]] if len(peers) == 1 else "the best peer"
        said = f"{spread(ratios, 2)} × {NAMES[peer]}" if peer and ratios else ""
        outcome = judge(ratios, lambda r: r >= limit if wants_more else r <= limit)
        found.append(Verdict(what, f"{sign} {limit:g} × {name}", said, outcome))

    for scenario, what in (("c64", "64"), ("c256", "256")):
        limits = {"nginx": 0.85, "haproxy": 0.75, "haproxy-tcp": 1.0, "envoy": 0.42}
        for peer, limit in limits.items():
            name = f"CPU per request, {what} connections"
            against(name, scenario, "cpu_us", [peer], limit)
    for peer, limit in (("nginx", 0.9), ("haproxy", 0.85)):
        name = "CPU per request, each on a new connection"
        against(name, "new", "cpu_us", [peer], limit)
    for scenario, what in (
        ("c1", "1 connection"),
        ("c64", "64 connections"),
        ("c256", "256 connections"),
    ):
        name = f"requests a second, {what}"
        against(name, scenario, "per_second", PEERS, 1.0, wants_more=True)
    for scenario, what in (
        ("c1", "1 connection"),
        ("c64", "64 connections"),
        ("c256", "256 connections"),
        ("rate", "half the peak"),
    ):
        for figure in ("p50_ms", "p99_ms"):
            against(f"latency {figure[:3]}, {what}", scenario, figure, PEERS, 1.0)
    idle = samples.of("streams-idle", "ours", "bytes_per_stream")
    at_most("memory per idle stream", [value / 1000 for value in idle], 3.0, " kB")
    held = samples.of("streams-group", "ours", "share_held")
    streams = samples.of("streams-group", "ours", "streams")
    outcome = judge(held, lambda share: share >= 1.0)
    if outcome is Outcome.MET and min(streams) < 10_000:
        # That fewer fit says nothing about 10,000.
        outcome = Outcome.UNKNOWN
    said = f"{held[0]:.0%} of {streams[0]:,.0f}" if held else ""
    what = "10,000 streams inside 128 MiB, kernel included"
    found.append(Verdict(what, "all", said, outcome))
    base = samples.of("base", "ours", "pss_bytes")
    at_most("base memory", [value / 1e6 for value in base], 8.0, " MB", 1)
    against("CPU per event", "streams", "cpu_us", HTTP_PEERS, 0.9)
    against("latency p99 of an event", "streams", "p99_ms", HTTP_PEERS, 1.0)
    for scenario in BODIES:
        way, size = scenario.split("-")
        what = f"octets per CPU second, {size.rstrip('m')} MB {way}"
        against(what, scenario, "gb_per_cpu_s", PEERS, 1.0, wants_more=True)
    grown = [v / MIB for s in BODIES for v in samples.of(s, "ours", "growth_bytes")]
    at_most("memory that large bodies add", grown, FLAT_BYTES / MIB, " MiB", 1)
    affinity = samples.differences("affinity", "named", "unnamed", "cpu_us")
    at_most("affinity, per request", affinity, 0.1, " µs")
    backends = samples.differences("backends", "10,000", "3", "cpu_us")
    at_most("10,000 backends over 3, per request", backends, 0.1, " µs")
    workers = samples.ratios("workers", "2", "1", "per_second")
    outcome = judge(workers, lambda ratio: ratio >= 1.8)
    said = f"{spread(workers, 2)} ×" if workers else ""
    if workers and not all(samples.of("workers", "2", "is_apart")):
        said, outcome = f"{said}, load on the same CPUs", Outcome.UNKNOWN
    found.append(Verdict("requests a second, two workers over one", "≥ 1.8 ×", said, outcome))
    epoll = samples.ratios("c64", "ours-epoll", "ours", "cpu_us")
    at_most("CPU per request on epoll, of that on io_uring", epoll, 1.1, " ×")
    return found
