"""Load generators, and what they say. An answer that is no 200 is an error, not a figure."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from processes import BenchError, run

# How much longer than asked for a load generator may take.
PATIENCE_S = 120.0
# What oha says about requests that run when its time is over.
CUT_AT_THE_END = "aborted due to deadline"


@dataclass(frozen=True)
class Outcome:
    """What a load generator saw."""

    requests: int
    per_second: float
    p50_ms: float
    p99_ms: float


def wrk(
    url: str,
    cpus: Sequence[int],
    connections: int,
    seconds: float,
    options: Sequence[object] = (),
    script_arguments: Sequence[object] = (),
) -> Outcome:
    """As many requests as it can on these connections."""
    threads = min(connections, len(cpus))
    argv = ["wrk", f"-c{connections}", f"-t{threads}", f"-d{seconds:.0f}s", "--latency"]
    trailing = ["--", *script_arguments] if script_arguments else []
    text = run([*argv, *options, url, *trailing], cpus, seconds + PATIENCE_S)

    def found(pattern: str) -> re.Match[str]:
        match = re.search(pattern, text)
        if not match:
            raise BenchError(f"wrk does not say {pattern}:\n{text}")
        return match

    def milliseconds(percent: int) -> float:
        match = found(rf"\s{percent}%\s+([\d.]+)(us|ms|s|m)\b")
        return float(match[1]) * {"us": 0.001, "ms": 1.0, "s": 1000.0, "m": 60_000.0}[match[2]]

    if re.search(r"Non-2xx or 3xx responses|Socket errors", text):
        raise BenchError(f"wrk saw errors at {url}:\n{text}")
    requests = int(found(r"(\d+) requests in")[1])
    if requests == 0:
        raise BenchError(f"no request was answered at {url} in {seconds:.0f} s")
    return Outcome(
        requests=requests,
        per_second=float(found(r"Requests/sec:\s+([\d.]+)")[1]),
        p50_ms=milliseconds(50),
        p99_ms=milliseconds(99),
    )


def oha(
    program: Path, url: str, cpus: Sequence[int], connections: int, options: Sequence[object]
) -> Outcome:
    """Requests as `options` say: so many, or so long at a rate."""
    argv = [program, "--no-tui", "--output-format", "json", "-c", connections]
    text = run([*argv, *options, url], cpus, PATIENCE_S)
    said = json.loads(text)
    statuses: dict[str, int] = said["statusCodeDistribution"]
    errors = {k: v for k, v in said["errorDistribution"].items() if k != CUT_AT_THE_END}
    if set(statuses) != {"200"} or errors:
        raise BenchError(f"oha saw errors at {url}: statuses {statuses}, {errors}")
    latency = said["latencyPercentiles"]
    return Outcome(
        requests=statuses["200"],
        per_second=said["summary"]["requestsPerSec"],
        p50_ms=latency["p50"] * 1000.0,
        p99_ms=latency["p99"] * 1000.0,
    )
