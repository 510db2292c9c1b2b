"""Scenarios of ordinary requests: small and large ones, and those that a proxy must think about."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

from load import Outcome, oha, wrk
from processes import Most
from proxies import Kind, Proxy, ours
from samples import Figures
from stage import DESCRIPTORS_BESIDES, MEGABYTE, Entry, Stage

# Two processes share them: a listener and a connection each, within a usual limit of descriptors.
MANY_BACKENDS = 10_000
MANY_BACKENDS_PROCESSES = 2
# All backends have a connection by then: each request takes one at random.
MANY_BACKENDS_WARM_UP_REQUESTS = 150_000


def requests(proxy: Proxy, drive: Callable[[], Outcome]) -> Figures:
    """What a run of small requests costs."""
    before = proxy.child.cpu_s()
    outcome = drive()
    proxy.child.check()
    spent = proxy.child.cpu_s() - before
    return {
        "cpu_us": spent * 1e6 / outcome.requests,
        "per_second": outcome.per_second,
        "p50_ms": outcome.p50_ms,
        "p99_ms": outcome.p99_ms,
    }


def keep_alive(connections: int) -> Callable[[Stage], list[Entry]]:
    def prepare(stage: Stage) -> list[Entry]:
        return stage.each(
            lambda proxy: requests(
                proxy, lambda: wrk(proxy.url(), stage.cpus.load, connections, stage.seconds)
            )
        )

    return prepare


def new_connections(stage: Stage) -> list[Entry]:
    options = ["-H", "Connection: close"]
    return stage.each(
        lambda proxy: requests(
            proxy, lambda: wrk(proxy.url(), stage.cpus.load, 64, stage.seconds, options)
        )
    )


def fixed_rate(stage: Stage) -> list[Entry]:
    program = stage.tools.oha
    if program is None:
        return []
    rate = stage.rate()
    options = ["-q", rate, "--latency-correction", "-z", f"{stage.seconds:.0f}s"]
    return stage.each(
        lambda proxy: requests(
            proxy, lambda: oha(program, proxy.url(), stage.cpus.load, 64, options)
        )
    )


def bodies(
    way: str, megabytes: int, count: int, connections: int
) -> Callable[[Stage], list[Entry]]:
    """Large bodies in one direction: octets per CPU second, and what memory they take."""

    def prepare(stage: Stage) -> list[Entry]:
        program = stage.tools.oha
        if program is None:
            return []
        octets = megabytes * MEGABYTE
        options: list[object] = ["-n", count]
        path = f"/bytes/{octets}"
        if way == "up":
            file = stage.children.directory / f"{megabytes}m"
            if not file.exists():
                file.write_bytes(bytes(octets))
            options += ["-m", "POST", "-D", file]
            path = "/upload"

        # Before any such body: what a first one adds and a second one uses again counts as well.
        at_rest = {proxy.kind: proxy.child.resident_bytes() for proxy in stage.proxies()}

        def measure(proxy: Proxy) -> Figures:
            before = proxy.child.cpu_s()
            with Most(proxy.child.resident_bytes) as memory:
                outcome = oha(program, proxy.url(path), stage.cpus.load, connections, options)
            spent = proxy.child.cpu_s() - before
            moved_gb = outcome.requests * octets / 1e9
            return {
                "gb_per_cpu_s": moved_gb / spent,
                "gb_per_s": outcome.per_second * octets / 1e9,
                "growth_bytes": memory.most - at_rest[proxy.kind],
            }

        return stage.each(measure)

    return prepare


def affinity(stage: Stage) -> list[Entry]:
    """Requests that name an instance, beside others with a field of the same length."""
    proxy = next(p for p in stage.proxies() if p.kind == "ours")
    script = ["-s", Path(__file__).with_name("affinity.lua")]
    fields = {"named": "Stepflow-Instance-Id", "unnamed": "Stepflow-Instance-Xy"}

    def measure(name: str) -> Figures:
        return requests(
            proxy,
            lambda: wrk(proxy.url(), stage.cpus.load, 64, stage.seconds, script, [name]),
        )

    return [Entry(key, partial(measure, name)) for key, name in fields.items()]


def many_backends(stage: Stage) -> list[Entry]:
    """The same requests over 3 and over 10,000 backends, neither of them checked."""
    each = MANY_BACKENDS // MANY_BACKENDS_PROCESSES
    if stage.descriptors_max < MANY_BACKENDS + DESCRIPTORS_BESIDES:
        stage.notes.append(
            f"10,000 backends are left out: only {stage.descriptors_max} descriptors are allowed."
        )
        return []
    backends = []
    prefix = ".".join(stage.subnet.split(".")[:2])
    # Addresses far from those that the other backends have.
    third = (int(stage.subnet.rsplit(".", 1)[1]) + 64) % 128 + 1
    for number in range(MANY_BACKENDS_PROCESSES):
        first = f"{prefix}.{third + 32 * number}.0"
        backends += stage.start_backends(f"backends-{number + 1}", first, each)
    # Else what is measured is how often a connection that nobody used for 4 s is opened again.
    options = {"health_check": "off", "upstream_idle_timeout": "1h"}
    kinds = {"": ours(str(stage.tools.balancer), "ours", "", **options)}
    # What it costs anybody to use 10,000 connections in turn, most of them cold in every cache.
    if peer := next((kind for kind in stage.kinds if kind.key == "haproxy"), None):
        kinds["HAProxy, "] = peer
    proxies = {}
    for prefix, kind in kinds.items():
        for count, addresses in (("3", stage.backends()), ("10,000", backends)):
            site = replace(
                stage.site(addresses),
                checks_health=False,
                connections_max=stage.descriptors_max,
            )
            name = f"{kind.key}-{len(addresses)}-backends"
            proxies[prefix + count] = kind.start(stage.children, site, name)
    for name, proxy in proxies.items():
        done = 0
        while name.endswith("10,000") and done < MANY_BACKENDS_WARM_UP_REQUESTS:
            done += wrk(proxy.url(), stage.cpus.load, 64, 4).requests

    def measure(proxy: Proxy) -> Figures:
        return requests(proxy, lambda: wrk(proxy.url(), stage.cpus.load, 64, stage.seconds))

    return [Entry(key, partial(measure, proxy)) for key, proxy in proxies.items()]


def two_workers(stage: Stage) -> list[Entry]:
    """One worker and two, with the load where it is in both cases."""
    cpus, load, is_apart = stage.cpus.for_two_workers()
    kind = ours(str(stage.tools.balancer), "ours", "")
    proxies = {}
    for workers in (1, 2):
        site = replace(stage.site(stage.backends()), cpus=cpus[:workers], workers=workers)
        proxies[str(workers)] = kind.start(stage.children, site, f"ours-workers-{workers}")

    def measure(proxy: Proxy) -> Figures:
        figures = requests(proxy, lambda: wrk(proxy.url(), load, 256, stage.seconds))
        return figures | {"is_apart": float(is_apart)}

    return [Entry(key, partial(measure, proxy)) for key, proxy in proxies.items()]


def base_memory(stage: Stage) -> list[Entry]:
    """A proxy that has served one request."""

    def measure(kind: Kind) -> Figures:
        with stage.alone(kind, stage.site(stage.backends()), f"{kind.key}-base") as proxy:
            proxy.ask("/")
            return {"pss_bytes": proxy.child.pss_bytes()}

    return [Entry(kind.key, partial(measure, kind)) for kind in stage.kinds]
