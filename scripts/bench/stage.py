"""Where a run plays: backends and proxies, each started when it is first needed."""

from __future__ import annotations

import contextlib
import ipaddress
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import host
from load import wrk
from processes import BenchError, Child, Children, wait_for
from proxies import Kind, Proxy, Site
from samples import Figures

BACKENDS = 3
# What a process needs besides its connections, and what it keeps for refusals and its own calls.
DESCRIPTORS_BESIDES = 500
SMALL_BYTES = 100
MEGABYTE = 1_000_000


@dataclass(frozen=True)
class Tools:
    """Programs that a run uses. Those that could not be had are `None`."""

    balancer: Path
    backend: Path
    streams: Path
    oha: Path | None


@dataclass(frozen=True)
class Entry:
    """One column of a scenario: a proxy, or one way to use it."""

    name: str
    measure: Callable[[], Figures]


@dataclass(frozen=True)
class Scenario:
    """What is measured in each round, one entry after the other."""

    key: str
    title: str
    prepare: Callable[[Stage], list[Entry]]
    # Some figures hardly vary, and take long.
    rounds_max: int = 1_000
    needs_warm_up: bool = True


@dataclass
class Stage:
    """Backends and proxies of a run, each started when it is first needed."""

    children: Children
    tools: Tools
    kinds: list[Kind]
    cpus: host.Cpus
    subnet: str
    """The first three numbers of an IPv4 loopback address that is this run's alone."""
    seconds: float
    descriptors_max: int
    notes: list[str] = field(default_factory=list)
    _proxies: dict[str, Proxy] = field(default_factory=dict)
    _backends: list[str] = field(default_factory=list)
    _sources: list[str] = field(default_factory=list)
    _rate: int = 0

    def site(self, backends: list[str]) -> Site:
        return Site(f"{self.subnet}.200", backends, self.cpus.proxy)

    def backends(self) -> list[str]:
        """Addresses of the backends of ordinary requests."""
        if not self._backends:
            self._backends = self.start_backends("backend", f"{self.subnet}.1", BACKENDS)
        return self._backends

    def start_backends(self, name: str, first: str, count: int) -> list[str]:
        argv = [self.tools.backend, f"{first}:0", count]
        child = self.children.start(name, argv, self.cpus.load)
        port = listening_ports(child, 1)[0].rsplit(":", 1)[1]
        start = ipaddress.IPv4Address(first)
        return [f"{start + number}:{port}" for number in range(count)]

    def sources(self) -> list[str]:
        """Addresses of the backends of event streams."""
        if not self._sources:
            argv: list[object] = [self.tools.streams]
            for number in range(BACKENDS):
                argv += ["--listen", f"{self.subnet}.{100 + number}:0"]
            child = self.children.start("source", argv, self.cpus.load)
            self._sources = listening_ports(child, BACKENDS)
        return self._sources

    def proxies(self) -> list[Proxy]:
        """All of them, in front of the same backends."""
        for kind in self.kinds:
            if kind.key not in self._proxies:
                proxy = kind.start(self.children, self.site(self.backends()))
                verify(proxy)
                self._proxies[kind.key] = proxy
        return list(self._proxies.values())

    def each(self, measure: Callable[[Proxy], Figures]) -> list[Entry]:
        """An entry for each proxy."""
        return [Entry(proxy.kind, partial(measure, proxy)) for proxy in self.proxies()]

    def rate(self) -> int:
        """Half of what nginx, or without it the first, does at its peak with 64 connections."""
        if not self._rate:
            proxies = self.proxies()
            measure = next((p for p in proxies if p.kind == "nginx"), proxies[0])
            peak = wrk(measure.url(), self.cpus.load, 64, max(2.0, self.seconds)).per_second
            self._rate = int(round(peak / 2.0, -2))
            self.notes.append(f"The fixed rate is {self._rate:,} requests a second.")
        return self._rate

    @contextlib.contextmanager
    def alone(self, kind: Kind, site: Site, name: str) -> Iterator[Proxy]:
        """A proxy for one measurement, fresh, that ends with it."""
        with Children(self.children.directory) as children:
            yield kind.start(children, site, name)


def listening_ports(child: Child, count: int) -> list[str]:
    """The addresses that a backend of ours says it listens on."""

    def addresses() -> list[str]:
        return re.findall(r"^listening on (\S+)$", child.text(), re.MULTILINE)

    wait_for(lambda: len(addresses()) == count, f"{child.name} to listen", [child])
    return addresses()


def verify(proxy: Proxy) -> None:
    """Raises unless the proxy serves what is to be measured, octet for octet."""
    octets = bytes(range(256)) * (MEGABYTE // 256 + 1)
    expected = {
        ("/", None): b"x" * SMALL_BYTES,
        (f"/bytes/{MEGABYTE}", None): octets[:MEGABYTE],
        ("/upload", octets[:MEGABYTE]): str(MEGABYTE).encode(),
    }
    for (path, body), wanted in expected.items():
        status, answer = proxy.ask(path, body)
        if status != 200 or answer != wanted:
            raise BenchError(
                f"{proxy.kind}: {path} gave {status} and {len(answer)} octets, "
                f"not 200 and {len(wanted)}:\n{proxy.child.text()[-2000:]}"
            )
