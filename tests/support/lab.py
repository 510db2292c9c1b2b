"""Real processes for tests in Python: starting, waiting, stopping, and the balancer among them.

Owns free ports, waiting for health with a deadline, stopping by pid, and the logs. Knows neither
Stepflow nor MCP, and no test. Nothing here sleeps for a fixed time: it waits for a condition or
fails saying which.
"""

import http.client
import itertools
import json
import os
import random
import re
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent.parent
DENY_IO_URING = REPOSITORY / "tests" / "support" / "deny_io_uring.py"

# Generous: two cores may be shared with a compiler. A healthy run needs a tenth of it.
START_S = 60.0
# What a request without a body to wait for may take.
REQUEST_S = 30.0


# ----------------------------------------------------------------------------- waiting and HTTP


class Deadline(AssertionError):
    """A condition did not come true in time."""


def eventually(what, condition, within_s, pause_s=0.02):
    """The first true answer of `condition`; the last other one is shown when time is up."""
    end = time.monotonic() + within_s
    while True:
        answer = condition()
        if answer:
            return answer
        if time.monotonic() > end:
            raise Deadline(f"not within {within_s} s: {what}; last answer: {answer!r}")
        time.sleep(pause_s)


@dataclass
class Response:
    """An HTTP response, whole."""

    status: int
    headers: http.client.HTTPMessage
    body: bytes

    def json(self):
        return json.loads(self.body)


def request(address, method, path, body=None, headers=None, timeout_s=REQUEST_S):
    """One request on a connection of its own. Raises `OSError` when nobody answers."""
    connection = http.client.HTTPConnection(*address, timeout=timeout_s)
    try:
        if body is not None and not isinstance(body, bytes):
            body = json.dumps(body).encode()
        connection.request(method, path, body, headers or {})
        response = connection.getresponse()
        return Response(response.status, response.headers, response.read())
    except http.client.HTTPException as error:
        raise ConnectionError(f"{method} {path} at {address}: {error!r}") from error
    finally:
        connection.close()


# ----------------------------------------------------------------------------- metrics

SAMPLE = re.compile(r"^(?P<name>[a-zA-Z_:][\w:]*)(?:\{(?P<labels>.*)\})? (?P<value>\S+)$")
LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')


class Metrics:
    """One scrape, as a list of `(name, labels, value)`."""

    def __init__(self, text):
        self.samples = []
        for line in text.splitlines():
            if not line or line.startswith("#"):
                continue
            match = SAMPLE.match(line)
            assert match, f"not a sample of the text format: {line!r}"
            labels = dict(LABEL.findall(match["labels"] or ""))
            self.samples.append((match["name"], labels, float(match["value"])))

    def series(self, name, **labels):
        """`(labels, value)` of all series of that name that carry these labels."""
        return [
            (have, value)
            for candidate, have, value in self.samples
            if candidate == name and labels.items() <= have.items()
        ]

    def sum(self, name, **labels):
        return sum(value for _, value in self.series(name, **labels))

    def one(self, name, **labels):
        found = self.series(name, **labels)
        assert len(found) == 1, f"{name} {labels}: {len(found)} series"
        return found[0][1]

    def workers_are_up_to_date(self):
        """Whether every worker has the snapshot that was published last."""
        published = self.one("stepflow_lb_snapshot_version_published")
        return all(value == published for _, value in self.series("stepflow_lb_snapshot_version"))


# ----------------------------------------------------------------------------- processes


class Process:
    """A child with its log. Ended by its own pid, never by name."""

    # How long it has to end by itself.
    stop_s = 5.0

    def __init__(self, name, argv, directory, env=None, stdin=None):
        self.name = name
        self.log_path = directory / f"{name}.log"
        self._log = open(self.log_path, "wb")
        self.process = subprocess.Popen(
            [str(a) for a in argv],
            stdout=self._log,
            stderr=subprocess.STDOUT,
            stdin=subprocess.PIPE if stdin is not None else subprocess.DEVNULL,
            env=env,
            cwd=directory,
            # Ctrl-C at the terminal is for pytest, which then stops its children in order.
            start_new_session=True,
        )
        if stdin is not None:
            self.process.stdin.write(stdin)
            self.process.stdin.close()

    @property
    def pid(self):
        return self.process.pid

    def is_running(self):
        return self.process.poll() is None

    def log(self, offset=0):
        with open(self.log_path, "rb") as file:
            file.seek(offset)
            return file.read().decode(errors="replace")

    def log_size(self):
        return self.log_path.stat().st_size

    def wait_until(self, what, condition, within_s=START_S):
        """As `eventually`, and fails at once when the process ends first."""

        def check():
            if not self.is_running():
                code = self.process.returncode
                raise AssertionError(f"{self.name} ended with {code} before {what}:\n{self.log()}")
            return condition()

        return eventually(f"{self.name}: {what}", check, within_s)

    def announced_port(self):
        """The port of the line `{"port": N}` that servers of ours print."""

        def announcement():
            match = re.search(r'^\{"port": ?(\d+)\}$', self.log(), re.MULTILINE)
            return int(match[1]) if match else None

        return self.wait_until("it announced its port", announcement)

    def send(self, number):
        self.process.send_signal(number)

    def kill(self):
        """At once and without a word: its sockets are reset or closed by the kernel."""
        self.process.kill()
        self.process.wait()

    def stop(self, within_s=None):
        """SIGTERM, then SIGKILL when that takes too long. Returns the exit code."""
        if self.is_running():
            self.process.terminate()
            try:
                self.process.wait(within_s or self.stop_s)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        self._log.close()
        return self.process.returncode


class Backend(Process):
    """A backend of the balancer, which says in its health body who it is."""

    def __init__(self, name, argv, directory, host, port, instance):
        argv = [*argv, host, port, instance]
        super().__init__(name, argv, directory, env=clean_environment())
        self.instance, self.host, self.port = instance, host, port

    def wait_healthy(self):
        self.port = self.announced_port()
        assert request(self.address, "GET", "/health").json()["instanceId"] == self.instance
        return self

    @property
    def address(self):
        return (self.host, self.port)

    @property
    def label(self):
        """What the metrics call it."""
        return joined(self.address)


# ----------------------------------------------------------------------------- the balancer


class Balancer(Process):
    """The program under test."""

    def __init__(self, name, directory, upstream, address, metrics_address, launcher=(), **options):
        env = clean_environment()
        env["UPSTREAM_SERVICE"] = upstream
        env["BIND_ADDRESS"] = joined(address)
        env["METRICS_ADDRESS"] = joined(metrics_address)
        env["STEPFLOW_LB_ADMIN_ADDRESS"] = "127.0.0.1:0"
        env.update({key: str(value) for key, value in options.items()})
        super().__init__(name, [*launcher, balancer_binary()], directory, env=env)
        self.address = address
        self.metrics_address = metrics_address

    @property
    def url(self):
        return f"http://{joined(self.address)}"

    def health(self):
        """Status and body of its own health endpoint; `(None, None)` while nobody listens."""
        try:
            response = request(self.address, "GET", "/health", timeout_s=5)
        except OSError:
            return None, None
        return response.status, response.json()

    def wait_for_backends(self, healthy, within_s=START_S):
        """Waits until every worker knows of exactly this many healthy backends."""

        def enough():
            # One worker answers; the others may be behind.
            _, body = self.health()
            return (
                body is not None
                and body["backends"]["healthy"] == healthy
                and self.metrics().workers_are_up_to_date()
            )

        self.wait_until(f"{healthy} healthy backends", enough, within_s)
        return self

    def admin(self, method, path):
        """An admin call, at the port that it chose for them."""

        def announcement():
            return re.search(r"Admin calls available on http://([\d.]+):(\d+)/", self.log())

        host, port = self.wait_until("it serves admin calls", announcement).groups()
        return request((host, int(port)), method, path)

    def metrics(self):
        response = request(self.metrics_address, "GET", "/metrics")
        assert response.status == 200
        return Metrics(response.body.decode())

    def drivers(self):
        """The kernel interfaces that its worker threads use: `epoll`, or `io_uring-1024`, whose
        number of entries is not of interest here."""
        series = self.metrics().series("stepflow_lb_worker_driver")
        return {labels["driver"].partition("-")[0] for labels, value in series if value > 0}


# ----------------------------------------------------------------------------- putting together


class Lab:
    """Everything that one test, or several that share it, started. `close` ends it all."""

    _serial = itertools.count(1)
    open_labs = []
    balancer_type = Balancer

    def __init__(self, directory):
        self.directory = Path(directory)
        self.directory.mkdir(parents=True, exist_ok=True)
        self.processes = []
        self.network = loopback_network()
        self._hosts = itertools.count(1)
        Lab.open_labs.append(self)

    def _add(self, process):
        self.processes.append(process)
        return process

    def _host(self):
        return f"{self.network}.{next(self._hosts)}"

    def balancer(self, backends, launcher=(), later=(), address=None, **options):
        """Starts the balancer in front of these backends and waits until it has found them all.
        Nobody listens yet at the addresses `later`; nobody listens any more at `address`."""
        upstream = ",".join([backend.label for backend in backends] + [joined(at) for at in later])
        free, metrics = free_addresses(self._host(), 2)
        address = address or free
        name = f"balancer-{next(Lab._serial)}"
        options.setdefault("STEPFLOW_LB_WORKERS", 2)
        # Nobody needs time to notice that it is going.
        options.setdefault("STEPFLOW_LB_DRAIN_GRACE", "100ms")
        started = self.balancer_type(
            name, self.directory, upstream, address, metrics, launcher, **options
        )
        return self._add(started).wait_for_backends(len(backends))

    def close(self):
        # Last started first: clients go before the servers they talk to.
        for process in reversed(self.processes):
            process.stop()
        Lab.open_labs.remove(self)


def loopback_network():
    """Three octets of a /24 inside 127/8 of our own, so that parallel runs do not meet."""
    return f"127.{random.randrange(16, 240)}.{random.randrange(256)}"


def free_addresses(host, count):
    """Ports that are free at `host`. Ours alone, because nobody else uses that host."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for each in sockets:
            each.bind((host, 0))
        return [each.getsockname() for each in sockets]
    finally:
        for each in sockets:
            each.close()


def joined(address):
    host, port = address
    return f"{host}:{port}"


def clean_environment():
    """Ours without anything that would configure a child behind the test's back."""
    prefixes = ("STEPFLOW_", "UPSTREAM_", "BIND_ADDRESS", "METRICS_ADDRESS", "HEALTH_CHECK_")
    exact = ("MAX_FAILURES", "RUST_LOG")
    env = {k: v for k, v in os.environ.items() if not k.startswith(prefixes) and k not in exact}
    env["PYTHONUNBUFFERED"] = "1"
    env["PYTHONDONTWRITEBYTECODE"] = "1"
    return env


def balancer_binary():
    """`STEPFLOW_LB_BIN`, else the release build, else the debug build."""
    named = os.environ.get("STEPFLOW_LB_BIN")
    target = Path(os.environ.get("CARGO_TARGET_DIR", REPOSITORY / "target"))
    builds = [target / profile / "stepflow-load-balancer" for profile in ("release", "debug")]
    for candidate in [Path(named)] if named else builds:
        if candidate.is_file():
            return candidate.resolve()
    looked = named or " and ".join(map(str, builds))
    raise FileNotFoundError(f"no balancer at {looked}: cargo build, or set STEPFLOW_LB_BIN")


def io_uring_is_granted():
    """Whether the kernel gives this process a ring."""
    sys.path.insert(0, str(DENY_IO_URING.parent))
    try:
        import deny_io_uring
    finally:
        sys.path.pop(0)
    return deny_io_uring.io_uring_errno() == 0


def denying_io_uring():
    """The launcher whose command finds every io_uring call refused."""
    return (sys.executable, DENY_IO_URING)
