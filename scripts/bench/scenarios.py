"""The table of everything that is measured, in the order of a round."""

from __future__ import annotations

from ordinary import (
    affinity,
    base_memory,
    bodies,
    fixed_rate,
    keep_alive,
    many_backends,
    new_connections,
    two_workers,
)
from stage import Scenario
from streams import events, idle_streams, streams_in_group

SCENARIOS = [
    # The first, and only once: what runs later from the same file would bear a part of its memory.
    Scenario("base", "base memory", base_memory, 1, False),
    Scenario("c1", "keep-alive, 1 connection", keep_alive(1)),
    Scenario("c64", "keep-alive, 64 connections", keep_alive(64)),
    Scenario("c256", "keep-alive, 256 connections", keep_alive(256)),
    Scenario("rate", "a fixed rate, 64 connections", fixed_rate),
    Scenario("new", "a new connection for each request", new_connections),
    Scenario("down-1m", "bodies of 1 MB down", bodies("down", 1, 1_500, 16)),
    Scenario("up-1m", "bodies of 1 MB up", bodies("up", 1, 1_500, 16)),
    Scenario("down-100m", "bodies of 100 MB down", bodies("down", 100, 16, 4)),
    Scenario("up-100m", "bodies of 100 MB up", bodies("up", 100, 16, 4)),
    Scenario("affinity", "affinity", affinity),
    Scenario("backends", "10,000 backends", many_backends),
    Scenario("workers", "two workers", two_workers),
    Scenario("streams", "1,000 streams with events", events, 3, False),
    Scenario("streams-idle", "1,000 idle streams", idle_streams, 3, False),
    Scenario("streams-group", "10,000 streams in 128 MiB", streams_in_group, 1, False),
]
QUICK = ["base", "c64", "new", "streams", "streams-idle"]
