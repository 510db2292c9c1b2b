"""The body of bench-smoke.sh, which see. Standard library only."""

import argparse
import asyncio
import contextlib
import http.client
import json
import os
import random
import re
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

CONNECTIONS = 64
STREAMS = 1000
BODY = '{"jsonrpc":"2.0","id":"1","result":{"output":{"text":"hello"}}}'


def main():
    parser = argparse.ArgumentParser(description="compares the balancer with nginx")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=5, help="of each measurement")
    arguments = parser.parse_args()
    host = f"127.{random.randrange(16, 240)}.{random.randrange(256)}.1"
    with tempfile.TemporaryDirectory(prefix="bench-smoke-") as directory, Children() as children:
        bench = Bench(Path(directory), children, host)
        bench.throughput(arguments.rounds, arguments.seconds)
        bench.streams()


class Children(contextlib.ExitStack):
    """Processes that end with us, by pid."""

    def start(self, *argv, **options):
        child = subprocess.Popen([str(a) for a in argv], **options)
        self.callback(self.end, child)
        return child

    @staticmethod
    def end(child):
        child.terminate()
        try:
            child.wait(5)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()


class Bench:
    """Backends, both proxies, and what is measured through them."""

    def __init__(self, directory, children, host):
        self.directory, self.children, self.host = directory, children, host

    def throughput(self, rounds, seconds):
        backends = free_ports(self.host, 3)
        proxy, data, metrics = free_ports(self.host, 3)
        self.nginx("backends", [backend_server(self.host, port) for port in backends])
        servers = "".join(f"server {self.host}:{port};" for port in backends)
        upstream = f"upstream u {{ least_conn; {servers} keepalive 64; }}"
        self.nginx("proxy", [upstream, proxy_server(self.host, proxy)])
        upstreams = ",".join(f"{self.host}:{port}" for port in backends)
        balancer = self.balancer(upstreams, data, metrics)
        ways = {"direct": backends[0], "nginx": proxy, "balancer": data}

        def all_answer():
            return all(get(self.host, port, "/")[0] == 200 for port in ways.values())

        wait_for(all_answer, "answers on every way")

        figures = {way: [] for way in ways}
        for round_index in range(rounds + 1):
            for way, port in ways.items():
                measured = wrk(self.host, port, seconds if round_index else 1)
                # The first round fills pools.
                if round_index:
                    figures[way].append(measured)
        print(f"wrk -c{CONNECTIONS}, {rounds} rounds of {seconds} s each, medians, "
              f"{os.cpu_count()} CPUs for everything")
        base = statistics.median(m["rate"] for m in figures["nginx"])
        for way, each in figures.items():
            rate, p50, p99 = (statistics.median(m[k] for m in each) for k in ("rate", "p50", "p99"))
            errors = sum(m["errors"] for m in each)
            print(f"  {way:10} {rate:9.0f} req/s  p50 {p50:7.3f} ms  p99 {p99:7.3f} ms  "
                  f"{rate / base:5.2f} of nginx  {errors} errors")
        self.children.end(balancer)

    def streams(self):
        port, data, metrics = free_ports(self.host, 3)
        self.children.start(sys.executable, __file__, "--serve-streams", self.host, port)
        wait_for(lambda: get(self.host, port, "/health")[0] == 200, "the stream backend")
        balancer = self.balancer(f"{self.host}:{port}", data, metrics)
        before = resident_kib(balancer.pid)
        clients = [socket.create_connection((self.host, data), timeout=30) for _ in range(STREAMS)]
        for client in clients:
            client.sendall(b"GET /stream HTTP/1.1\r\nHost: x\r\n\r\n")
        for client in clients:
            seen = b""
            while b"data: 1\n\n" not in seen:
                seen += client.recv(4096)
        during = resident_kib(balancer.pid)
        each = (during - before) / STREAMS
        print(f"resident memory: {before} KiB idle, {during} KiB with {STREAMS} open event streams "
              f"({each:.1f} KiB each)")
        for client in clients:
            client.close()

        def streams_are_over():
            text = get(self.host, metrics, "/metrics")[1].decode()
            return sum(active_connections(text)) == 0

        wait_for(streams_are_over, "active connections back at zero")
        print(f"after they went: {resident_kib(balancer.pid)} KiB, no active connections")

    def balancer(self, upstream, data, metrics):
        env = {
            "PATH": os.environ["PATH"],
            "UPSTREAM_SERVICE": upstream,
            "BIND_ADDRESS": f"{self.host}:{data}",
            "METRICS_ADDRESS": f"{self.host}:{metrics}",
            "STEPFLOW_LOG_LEVEL": "warn",
        }
        child = self.children.start(os.environ["STEPFLOW_LB_BIN"], env=env)
        count = upstream.count(",") + 1

        def all_healthy():
            if child.poll() is not None:
                sys.exit(f"the balancer ended with {child.returncode}")
            status, body = get(self.host, data, "/health")
            return status == 200 and json.loads(body)["backends"]["healthy"] == count

        wait_for(all_healthy, "healthy backends")
        return child

    def nginx(self, name, blocks):
        path = self.directory / f"{name}.conf"
        temporary = "".join(
            f"{kind}_temp_path {self.directory}/{name}-{kind};"
            for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        )
        path.write_text(
            f"daemon off; worker_processes {os.cpu_count()}; pid {self.directory}/{name}.pid;\n"
            f"error_log {self.directory}/{name}.log;\n"
            "events { worker_connections 4096; }\n"
            f"http {{ access_log off; keepalive_requests 1000000; {temporary}\n"
            + "\n".join(blocks)
            + "\n}\n"
        )
        log = self.directory / f"{name}.log"
        self.children.start("nginx", "-c", path, "-p", self.directory, "-e", log)


def backend_server(host, port):
    return (
        f"server {{ listen {host}:{port} reuseport; default_type application/json; "
        f"location / {{ return 200 '{BODY}'; }} "
        "location /health { return 200 '{\"status\":\"healthy\"}'; } }"
    )


def proxy_server(host, port):
    return (
        f"server {{ listen {host}:{port} reuseport; location / {{ proxy_pass http://u; "
        'proxy_http_version 1.1; proxy_set_header Connection ""; } }'
    )


def wrk(host, port, seconds):
    url = f"http://{host}:{port}/"
    argv = ["wrk", f"-c{CONNECTIONS}", "-t2", f"-d{seconds}s", "--latency", url]
    text = subprocess.run(argv, check=True, stdout=subprocess.PIPE, text=True).stdout

    def found(pattern):
        match = re.search(pattern, text)
        assert match, text
        return match

    def milliseconds(percent):
        match = found(rf"{percent}%\s+([\d.]+)(us|ms|s)\b")
        return float(match[1]) * {"us": 0.001, "ms": 1, "s": 1000}[match[2]]

    errors = re.search(r"Non-2xx or 3xx responses: (\d+)", text)
    sockets = re.search(r"errors: connect (\d+), read (\d+), write (\d+), timeout (\d+)", text)
    return {
        "rate": float(found(r"Requests/sec:\s+([\d.]+)")[1]),
        "p50": milliseconds(50),
        "p99": milliseconds(99),
        "errors": sum(int(n) for m in (errors, sockets) if m for n in m.groups()),
    }


def active_connections(text):
    pattern = r"^stepflow_lb_active_connections\{[^}]*\} (\S+)$"
    return [float(value) for value in re.findall(pattern, text, re.MULTILINE)]


def get(host, port, path):
    connection = http.client.HTTPConnection(host, port, timeout=5)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        return response.status, response.read()
    except (OSError, http.client.HTTPException):
        return None, b""
    finally:
        connection.close()


def wait_for(condition, what, within_s=30):
    end = time.monotonic() + within_s
    while not condition():
        if time.monotonic() > end:
            sys.exit(f"not within {within_s} s: {what}")
        time.sleep(0.05)


def resident_kib(pid):
    status = Path(f"/proc/{pid}/status").read_text()
    return int(re.search(r"^VmRSS:\s+(\d+) kB$", status, re.MULTILINE)[1])


def free_ports(host, count):
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind((host, 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


async def serve_streams(host, port):
    """A backend whose streams say one event a second and never end."""

    async def handle(reader, writer):
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                if not head.startswith(b"GET /stream"):
                    body = b'{"status":"healthy"}'
                    head = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body)
                    writer.write(head + body)
                    await writer.drain()
                    continue
                writer.write(
                    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"
                    b"Transfer-Encoding: chunked\r\n\r\n"
                )
                for number in range(1, sys.maxsize):
                    event = b"data: %d\n\n" % number
                    writer.write(b"%x\r\n%s\r\n" % (len(event), event))
                    await writer.drain()
                    await asyncio.sleep(1)
        writer.close()

    server = await asyncio.start_server(handle, host, port, backlog=STREAMS)
    await server.serve_forever()


if __name__ == "__main__":
    if sys.argv[1:2] == ["--serve-streams"]:
        asyncio.run(serve_streams(sys.argv[2], int(sys.argv[3])))
    else:
        main()
