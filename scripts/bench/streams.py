"""Scenarios of event streams, through the driver in `benches/streams.rs`."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import host
from processes import BenchError, Most, run
from proxies import Kind, Proxy
from samples import Figures
from stage import DESCRIPTORS_BESIDES, Entry, Stage

IDLE_STREAMS = 1_000
EVENTS_PER_SECOND = 10
GROUP_STREAMS = 10_000
GROUP_BYTES = 128 << 20
# How much longer than asked for the driver may take: to open all streams, for the most part.
PATIENCE_S = 120.0


def drive_streams(stage: Stage, proxy: Proxy, streams: int, rate: float) -> dict[str, float]:
    """What the driver of event streams says, which checks every event."""
    argv: list[object] = [
        stage.tools.streams,
        "--target",
        f"{proxy.host}:{proxy.port}",
        "--streams",
        streams,
    ]
    argv += ["--rate", rate, "--seconds", f"{stage.seconds:.0f}", "--pid", proxy.child.pid]
    said = json.loads(run(argv, stage.cpus.load, stage.seconds + PATIENCE_S))
    if said["troubles"]:
        raise BenchError(f"{proxy.kind}: {said['troubles']} streams were cut or wrong")
    return {key: value for key, value in said.items() if value is not None}


def over_streams(stage: Stage, measure: Callable[[Proxy], Figures], suffix: str) -> list[Entry]:
    """An entry for each proxy, which is started anew for it: memory that was used once may stay."""
    site = replace(
        stage.site(stage.sources()), serves_streams=True, connections_max=4 * IDLE_STREAMS
    )

    def alone(kind: Kind) -> Figures:
        with stage.alone(kind, site, f"{kind.key}-{suffix}") as proxy:
            return measure(proxy)

    return [Entry(kind.key, partial(alone, kind)) for kind in stage.kinds]


def idle_streams(stage: Stage) -> list[Entry]:
    def measure(proxy: Proxy) -> Figures:
        said = drive_streams(stage, proxy, IDLE_STREAMS, 0)
        return {"bytes_per_stream": said["pss_bytes_per_stream"]}

    return over_streams(stage, measure, "idle")


def events(stage: Stage) -> list[Entry]:
    def measure(proxy: Proxy) -> Figures:
        said = drive_streams(stage, proxy, IDLE_STREAMS, EVENTS_PER_SECOND)
        return {
            "cpu_us": said["cpu_us_per_event"],
            "p50_ms": said["latency_us_p50"] / 1000.0,
            "p99_ms": said["latency_us_p99"] / 1000.0,
            "bytes_per_stream": said["pss_bytes_per_stream"],
        }

    return over_streams(stage, measure, "events")


def streams_in_group(stage: Stage) -> list[Entry]:
    """10,000 silent streams where all memory together, the kernel's included, is bounded."""
    with host.memory_group(GROUP_BYTES) as group:
        if group is None:
            stage.notes.append(
                "Streams inside a memory cgroup are left out: none may be made here."
            )
            return []
    streams = min(GROUP_STREAMS, (stage.descriptors_max - DESCRIPTORS_BESIDES) // 2)
    if streams < GROUP_STREAMS:
        stage.notes.append(
            f"Only {stage.descriptors_max:,} descriptors are allowed here, two for each stream: "
            f"{streams:,} streams instead of {GROUP_STREAMS:,}."
        )

    def measure(kind: Kind) -> Figures:
        with host.memory_group(GROUP_BYTES) as group:
            if group is None:
                raise BenchError("the memory cgroup can no longer be made")
            site = replace(
                stage.site(stage.sources()),
                serves_streams=True,
                connections_max=stage.descriptors_max,
                group=group.path,
            )
            with (
                stage.alone(kind, site, f"{kind.key}-group") as proxy,
                Most(group.used_bytes) as used,
            ):
                try:
                    drive_streams(stage, proxy, streams, 0)
                    # Version 1 of cgroups has a bound of its own for socket buffers.
                    held = float(used.most <= GROUP_BYTES)
                except BenchError as error:
                    # That one needs more is a result. Some are killed, some only stop accepting.
                    print(f"{kind.label} in {GROUP_BYTES >> 20} MiB: {error}", file=sys.stderr)
                    held = 0.0
                return {"share_held": held, "group_bytes": used.most, "streams": float(streams)}

    return [Entry(kind.key, partial(measure, kind)) for kind in stage.kinds]
