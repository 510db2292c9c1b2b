"""The body of stream-latency.sh, which see. Standard library only."""

import argparse
import contextlib
import http.client
import json
import os
import platform
import random
import resource
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

BACKENDS = 3
PROXY_CORE, OTHER_CORE = "0", "1"
FIGURES = {
    "latency_us_p50": "p50 µs",
    "latency_us_p99": "p99 µs",
    "latency_us_max": "max µs",
    "cpu_us_per_event": "CPU µs per event",
    "pss_bytes_per_stream": "bytes per stream",
}


def main():
    parser = argparse.ArgumentParser(description="latency of events through proxies")
    parser.add_argument("--driver", required=True, help="the program of benches/streams.rs")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=10, help="of each measurement")
    parser.add_argument("--streams", type=int, default=1000)
    parser.add_argument("--rate", type=float, default=10, help="events a second of each stream")
    arguments = parser.parse_args()
    if os.cpu_count() < 2:
        sys.exit("needs two cores, or proxy and driver take turns")
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    if most < arguments.streams * 2 + 500:
        sys.exit(f"needs {arguments.streams * 2 + 500} descriptors, may have {most}")
    with tempfile.TemporaryDirectory(prefix="stream-latency-") as directory:
        with contextlib.ExitStack() as stack:
            measure(arguments, Path(directory), stack)


def measure(arguments, directory, stack):
    host = f"127.{random.randrange(16, 240)}.{random.randrange(256)}.1"
    listen = [word for _ in range(BACKENDS) for word in ("--listen", f"{host}:0")]
    source = stack.enter_context(
        process([arguments.driver, *listen], OTHER_CORE, stdout=subprocess.PIPE)
    )
    lines = [source.stdout.readline() for _ in range(BACKENDS)]
    backends = [line.removeprefix("listening on ").strip() for line in lines]
    ways = {
        "no proxy": None,
        "this balancer": balancer,
        f"nginx {version('nginx', '-v')}": nginx,
        f"HAProxy {version('haproxy', '-v')}": haproxy,
    }
    results = {way: [] for way in ways}
    for number in range(arguments.rounds):
        order = list(ways)
        # Who comes first finds the machine as the one before has left it.
        random.Random(number).shuffle(order)
        for way in order:
            results[way].append(one(arguments, ways[way], backends, host, directory))
            print(f"round {number + 1}: {way}: {json.dumps(results[way][-1])}", file=sys.stderr)
    table(arguments, results)


def one(arguments, start, backends, host, directory):
    """A round of one proxy, or of none."""
    load = ["--streams", arguments.streams, "--rate", arguments.rate]
    load += ["--seconds", arguments.seconds]
    if start is None:
        return drive(arguments.driver, backends[0], load)
    port = free_port(host)
    argv, env = start(host, port, backends, directory)
    # What it says goes where ours goes: it is nothing, unless something is wrong.
    with process(argv, PROXY_CORE, env=env, stdout=sys.stderr) as proxy:
        wait_for(lambda: is_healthy(proxy, host, port), f"{argv[0]} answers")
        return drive(arguments.driver, f"{host}:{port}", [*load, "--pid", proxy.pid])


def drive(driver, target, load):
    argv = ["taskset", "-c", OTHER_CORE, driver, "--target", target, *map(str, load)]
    done = subprocess.run(argv, check=True, stdout=subprocess.PIPE, text=True)
    figures = json.loads(done.stdout)
    expected = figures["streams"] * figures["rate"] * figures["seconds"]
    if figures["events"] < 0.98 * expected:
        sys.exit(f"{figures['events']} of {expected} events: the machine is too busy to measure")
    return figures


def balancer(host, port, backends, directory):
    env = {
        "PATH": os.environ["PATH"],
        "UPSTREAM_SERVICE": ",".join(backends),
        "BIND_ADDRESS": f"{host}:{port}",
        "METRICS_ADDRESS": f"{host}:0",
        "STEPFLOW_LB_ADMIN_ADDRESS": "off",
        "STEPFLOW_LB_WORKERS": "1",
        "STEPFLOW_LOG_LEVEL": "warn",
    }
    return [os.environ["STEPFLOW_LB_BIN"]], env


def nginx(host, port, backends, directory):
    servers = "".join(f"server {backend};" for backend in backends)
    temporary = "".join(
        f"{kind}_temp_path {directory}/{kind};"
        for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    path = directory / "nginx.conf"
    path.write_text(
        f"""daemon off; worker_processes 1; pid {directory}/nginx.pid; error_log stderr;
        events {{ worker_connections 16384; }}
        http {{
            access_log off; {temporary}
            upstream u {{ least_conn; {servers} keepalive 64; }}
            server {{
                listen {host}:{port} reuseport backlog=8192;
                location / {{
                    proxy_pass http://u; proxy_http_version 1.1; proxy_set_header Connection "";
                    proxy_buffering off; proxy_read_timeout 1h;
                }}
            }}
        }}"""
    )
    return ["nginx", "-c", path, "-p", directory, "-e", "stderr"], None


def haproxy(host, port, backends, directory):
    servers = "\n".join(
        f"    server s{number} {backend} check inter 10s" for number, backend in enumerate(backends)
    )
    path = directory / "haproxy.cfg"
    path.write_text(
        f"""global
    nbthread 1
    maxconn 6000
defaults
    mode http
    option http-no-delay
    timeout connect 5s
    timeout client 1h
    timeout server 1h
frontend f
    bind {host}:{port} backlog 8192
    default_backend b
backend b
    balance leastconn
    option httpchk GET /health
{servers}
"""
    )
    return ["haproxy", "-db", "-q", "-f", path], None


def table(arguments, results):
    print(
        f"{arguments.streams} streams at {arguments.rate:g} events a second, {arguments.rounds} "
        f"rounds of {arguments.seconds} s, medians; {platform.release()}, {os.cpu_count()} cores, "
        f"{time.strftime('%Y-%m-%d')}\n"
    )
    print(f"| | {' | '.join(FIGURES.values())} |")
    print("| --- |" + " ---: |" * len(FIGURES))
    for way, rounds in results.items():
        cells = []
        for figure in FIGURES:
            values = [each[figure] for each in rounds if each[figure] is not None]
            cells.append(f"{statistics.median(values):,g}" if values else "")
        print(f"| {way} | {' | '.join(cells)} |")


@contextlib.contextmanager
def process(argv, core, **options):
    """A process on one core that ends with the block."""
    argv = ["taskset", "-c", core, *map(str, argv)]
    child = subprocess.Popen(argv, text=True, **options)
    try:
        yield child
    finally:
        child.terminate()
        try:
            child.wait(5)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()


def is_healthy(proxy, host, port):
    if proxy.poll() is not None:
        sys.exit(f"{proxy.args[3]} ended with {proxy.returncode}")
    connection = http.client.HTTPConnection(host, port, timeout=5)
    with contextlib.suppress(OSError, http.client.HTTPException):
        connection.request("GET", "/health", headers={"Connection": "close"})
        response = connection.getresponse()
        response.read()
        return response.status == 200
    return False


def wait_for(condition, what, within_s=30):
    end = time.monotonic() + within_s
    while not condition():
        if time.monotonic() > end:
            sys.exit(f"not within {within_s} s: {what}")
        time.sleep(0.05)


def free_port(host):
    with socket.socket() as each:
        each.bind((host, 0))
        return each.getsockname()[1]


def version(program, option):
    done = subprocess.run([program, option], capture_output=True, text=True, check=True)
    words = (done.stdout + done.stderr).replace("/", " ").split()
    return next(word for word in words if word[0].isdigit()).split("-")[0]


if __name__ == "__main__":
    main()
