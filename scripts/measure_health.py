#!/usr/bin/env python3
"""What health checks and large clusters cost, on loopback. Standard library only.

    scripts/measure_health.py [--program PATH] [--seconds N]

Prints the figures of docs/HEALTH.md: the CPU time of the control thread while 1,000 backends are
checked every 5 seconds, and how late the checks are; and with 10,000 backends, how long a change
takes from the call that brings it to the answers of a worker, and what they cost in memory.
"""

import argparse
import asyncio
import contextlib
import json
import os
import re
import socket
import statistics
import subprocess
import tempfile
import time
from pathlib import Path

PROBED = 1000
INTERVAL_SECONDS = 5
LARGE = 10_000
BODY = b'{"status":"healthy"}'
ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%s" % (len(BODY), BODY)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--program", default="target/release/stepflow-load-balancer")
    parser.add_argument("--seconds", type=int, default=60, help="of probing that are measured")
    arguments = parser.parse_args()
    asyncio.run(probing(arguments.program, arguments.seconds))
    large(arguments.program)


class Balancer:
    """A balancer in front of these addresses."""

    def __init__(self, program, addresses, **options):
        self.directory = tempfile.TemporaryDirectory(prefix="measure-health-")
        path = Path(self.directory.name) / "lb.toml"
        settings = {
            "upstream_service": ",".join(addresses),
            "bind_address": "127.0.0.1:0",
            "metrics_address": "127.0.0.1:0",
            "admin_address": "127.0.0.1:0",
            "workers": 2,
            "log_level": "info",
            "drain_grace": "0s",
        } | options
        path.write_text("".join(f"{key} = {json.dumps(value)}\n" for key, value in settings.items()))
        log = open(Path(self.directory.name) / "log", "w+")
        self.log = Path(log.name)
        self.child = subprocess.Popen([program, "--config", path], stdout=log)
        self.data = self.address(r"Load balancer listening on (\S+)")
        self.metrics = self.address(r"Prometheus metrics available on http://([^/]+)/")
        self.admin = self.address(r"http://([^/ ]+)/backends")

    def address(self, pattern):
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            if found := re.search(pattern, self.log.read_text()):
                host, port = found[1].rsplit(":", 1)
                return host, int(port)
            time.sleep(0.01)
        raise SystemExit(f"no {pattern} in\n{self.log.read_text()[-2000:]}")

    def control_cpu_seconds(self):
        tasks = Path(f"/proc/{self.child.pid}/task").iterdir()
        control = next(t for t in tasks if (t / "comm").read_text().strip() == "control")
        stat = (control / "stat").read_text()
        fields = stat.rsplit(") ", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def resident_bytes(self):
        pages = int(Path(f"/proc/{self.child.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")

    def healthy(self, connection=None):
        """How many backends are healthy, by a worker's own table."""
        text = ask(connection or self.data, b"GET /health HTTP/1.1\r\nHost: a\r\n\r\n")
        return int(re.search(rb'"healthy":(\d+)', text)[1])

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.child.terminate()
        self.child.wait()
        self.directory.cleanup()


def ask(to, request):
    """Sends a request on this connection, or on one of its own, and gives what comes at once."""
    if isinstance(to, socket.socket):
        to.sendall(request)
        return to.recv(65536)
    with socket.create_connection(to) as connection:
        connection.sendall(request)
        return connection.recv(65536)


async def probing(program, seconds):
    arrivals = {}

    async def answer(reader, writer):
        address = writer.get_extra_info("sockname")[0]
        arrivals.setdefault(address, []).append(time.monotonic())
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            await reader.readuntil(b"\r\n\r\n")
            writer.write(ANSWER)
            await writer.drain()
        writer.close()

    hosts = [f"127.77.{n // 250}.{n % 250 + 1}" for n in range(PROBED)]
    server = await asyncio.start_server(answer, hosts[0], 0)
    port = server.sockets[0].getsockname()[1]
    await asyncio.start_server(answer, hosts[1:], port, backlog=16)
    addresses = [f"{host}:{port}" for host in hosts]
    options = {"health_check_interval": INTERVAL_SECONDS}
    with Balancer(program, addresses, **options) as balancer:
        while len(arrivals) < PROBED:
            await asyncio.sleep(0.1)
        # The first interval spreads them.
        await asyncio.sleep(2 * INTERVAL_SECONDS)
        begun, cpu = time.monotonic(), balancer.control_cpu_seconds()
        await asyncio.sleep(seconds)
        cpu = balancer.control_cpu_seconds() - cpu
        took = time.monotonic() - begun
    # What the balancer had begun when it ended.
    await asyncio.sleep(0.2)
    gaps = []
    for times in arrivals.values():
        recent = [at for at in times if begun <= at]
        gaps += [b - a for a, b in zip(recent, recent[1:])]
    longest = INTERVAL_SECONDS * 1.1
    late = [gap - longest for gap in gaps if gap > longest]
    print(f"{PROBED} backends every {INTERVAL_SECONDS} s, for {took:.0f} s: {len(gaps)} pauses")
    print(f"  control thread: {100 * cpu / took:.2f} % of one core")
    print(f"  pause: median {statistics.median(gaps):.2f} s, longest {max(gaps):.3f} s")
    print(f"  over the interval and its jitter: {len(late)}, by {1000 * max(late, default=0):.1f} ms at most")


def large(program):
    def addresses(count):
        return [f"127.{n // 62500}.{n // 250 % 250}.{n % 250 + 1}:9" for n in range(count)]

    off = {"health_check": "off"}
    with Balancer(program, addresses(1), **off) as balancer:
        while balancer.healthy() < 1:
            time.sleep(0.01)
        small_bytes = balancer.resident_bytes()
    with Balancer(program, addresses(LARGE), **off) as balancer:
        while balancer.healthy() < LARGE:
            time.sleep(0.01)
        time.sleep(1)
        large_bytes = balancer.resident_bytes()
        cpu = balancer.control_cpu_seconds()
        time.sleep(10)
        cpu = balancer.control_cpu_seconds() - cpu
        took = []
        with socket.create_connection(balancer.data) as data:
            for n, address in enumerate(addresses(50), start=1):
                want = LARGE - n
                call = f"POST /backends/{address}/drain HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"
                with socket.create_connection(balancer.admin) as admin:
                    begun = time.monotonic()
                    admin.sendall(call.encode())
                    while balancer.healthy(data) != want:
                        if time.monotonic() > begun + 10:
                            raise SystemExit(f"no change: {admin.recv(4096)}")
                    took.append(time.monotonic() - begun)
                time.sleep(0.05)
    print(f"{LARGE} backends")
    print(f"  memory: {(large_bytes - small_bytes) / LARGE / 1024:.1f} KiB each, with 2 workers")
    print(f"  control thread, at rest, with outlier detection: {10 * cpu:.2f} % of one core")
    quantiles = statistics.quantiles(took, n=20)
    print(f"  from a call to a worker's answer: median {1000 * statistics.median(took):.1f} ms, "
          f"95 % within {1000 * quantiles[18]:.1f} ms")


if __name__ == "__main__":
    main()
