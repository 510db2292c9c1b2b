"""What we want to reach, and whether a run did."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from samples import Samples

PEERS = ("nginx", "haproxy", "haproxy-tcp", "envoy")
# TCP mode neither sees events nor headers: whoever streams over HTTP has the others to choose from.
HTTP_PEERS = ("nginx", "haproxy", "envoy")
BODIES = ("down-1m", "up-1m", "down-100m", "up-100m")
# What allocators keep and sockets come and go with: no body of 1 MB hides in it.
FLAT_BYTES = 4 << 20
MIB = 1 << 20


@dataclass(frozen=True)
class Verdict:
    """A target and what came of it. Without a value it was not measured."""

    what: str
    target: str
    value: str
    is_met: bool | None


def group_verdict(held: float | None, streams: float | None) -> bool | None:
    """Fewer that fit say nothing about 10,000."""
    if held is None or streams is None:
        return None
    if held < 1.0:
        return False
    return True if streams >= 10_000 else None


def verdicts(samples: Samples) -> list[Verdict]:
    """All targets, in the order in which they are written."""
    found: list[Verdict] = []

    def at_most(what: str, value: float | None, limit: float, unit: str, digits: int = 2) -> None:
        said = "" if value is None else f"{value:,.{digits}f}{unit}"
        is_met = None if value is None else value <= limit
        found.append(Verdict(what, f"≤ {limit:,g}{unit}", said, is_met))

    def against(
        what: str,
        scenario: str,
        figure: str,
        peers: Sequence[str],
        limit: float,
        is_good: Callable[[float, float], bool],
        wants_more: bool = False,
    ) -> None:
        peer = samples.best(scenario, peers, figure, wants_more)
        ratio = samples.ratio(scenario, "ours", peer, figure) if peer else None
        sign = "≥" if wants_more else "≤"
        name = peers[0] if len(peers) == 1 else "the best peer"
        said = "" if ratio is None else f"{ratio:.2f} × {peer}"
        is_met = None if ratio is None else is_good(ratio, limit)
        found.append(Verdict(what, f"{sign} {limit:g} × {name}", said, is_met))

    def less(ratio: float, limit: float) -> bool:
        return ratio <= limit

    def more(ratio: float, limit: float) -> bool:
        return ratio >= limit

    for scenario, what in (("c64", "64"), ("c256", "256")):
        limits = {"nginx": 0.85, "haproxy": 0.75, "haproxy-tcp": 1.0, "envoy": 0.42}
        for peer, limit in limits.items():
            name = f"CPU per request, {what} connections"
            against(name, scenario, "cpu_us", [peer], limit, less)
    for peer, limit in (("nginx", 0.9), ("haproxy", 0.85)):
        name = "CPU per request, each on a new connection"
        against(name, "new", "cpu_us", [peer], limit, less)
    for scenario, what in (
        ("c1", "1 connection"),
        ("c64", "64 connections"),
        ("c256", "256 connections"),
    ):
        name = f"requests a second, {what}"
        against(name, scenario, "per_second", PEERS, 1.0, more, wants_more=True)
    for scenario, what in (
        ("c1", "1 connection"),
        ("c64", "64 connections"),
        ("c256", "256 connections"),
        ("rate", "half the peak"),
    ):
        for figure in ("p50_ms", "p99_ms"):
            against(f"latency {figure[:3]}, {what}", scenario, figure, PEERS, 1.0, less)
    idle = samples.median("streams-idle", "ours", "bytes_per_stream")
    at_most("memory per idle stream", None if idle is None else idle / 1000, 3.0, " kB")
    held = samples.median("streams-group", "ours", "share_held")
    streams = samples.median("streams-group", "ours", "streams")
    found.append(
        Verdict(
            "10,000 streams inside 128 MiB, kernel included",
            "all",
            "" if held is None or streams is None else f"{held:.0%} of {streams:,.0f}",
            group_verdict(held, streams),
        )
    )
    base = samples.median("base", "ours", "pss_bytes")
    at_most("base memory", None if base is None else base / 1e6, 8.0, " MB", 1)
    against("CPU per event", "streams", "cpu_us", HTTP_PEERS, 0.9, less)
    against("latency p99 of an event", "streams", "p99_ms", HTTP_PEERS, 1.0, less)
    for scenario in BODIES:
        way, size = scenario.split("-")
        what = f"octets per CPU second, {size.rstrip('m')} MB {way}"
        against(what, scenario, "gb_per_cpu_s", PEERS, 1.0, more, wants_more=True)
    grown = [samples.median(scenario, "ours", "growth_bytes") for scenario in BODIES]
    largest = max((value for value in grown if value is not None), default=None)
    growth = None if largest is None else largest / MIB
    at_most("memory that large bodies add, at most", growth, FLAT_BYTES / MIB, " MiB", 1)
    affinity = samples.difference("affinity", "named", "unnamed", "cpu_us")
    at_most("affinity, per request", affinity, 0.1, " µs")
    backends = samples.difference("backends", "10,000", "3", "cpu_us")
    at_most("10,000 backends over 3, per request", backends, 0.1, " µs")
    workers = samples.ratio("workers", "2", "1", "per_second")
    apart = samples.median("workers", "2", "is_apart")
    found.append(
        Verdict(
            "requests a second, two workers over one",
            "≥ 1.8 ×",
            ""
            if workers is None
            else f"{workers:.2f} ×" + ("" if apart else " (load shares CPUs)"),
            None if workers is None or not apart else workers >= 1.8,
        )
    )
    epoll = samples.ratio("c64", "ours-epoll", "ours", "cpu_us")
    at_most("CPU per request on epoll, of that on io_uring", epoll, 1.1, " ×")
    return found
