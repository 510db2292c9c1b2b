"""Real processes for the tests: Stepflow workers, the orchestrator and the balancer.

Owns starting (free ports only), waiting for health with a deadline, stopping by pid, and the logs.
Knows no test. Nothing here sleeps for a fixed time: it waits for a condition or fails saying which.
"""

import importlib.metadata
import json
import random
import sys
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "support"))

import lab  # noqa: E402
from lab import (  # noqa: E402
    REQUEST_S,
    Backend,
    Deadline,
    Process,
    balancer_binary,
    clean_environment,
    denying_io_uring,
    eventually,
    free_addresses,
    io_uring_is_granted,
    joined,
    request,
)

__all__ = [
    "balancer_binary",
    "denying_io_uring",
    "eventually",
    "free_addresses",
    "io_uring_is_granted",
    "joined",
    "request",
]

STEPFLOW_VERSION = importlib.metadata.version("stepflow-py")

# A flow that takes longer hangs.
RUN_S = 120.0

# For tests that wait for health checks.
INTERVAL_S = 1.0
# Detection in about two seconds: two probes in a row, half a second each at most.
QUICK_HEALTH = {
    "HEALTH_CHECK_INTERVAL": INTERVAL_S,
    "HEALTH_CHECK_TIMEOUT": "500ms",
    "MAX_FAILURES": 2,
}
# Probes are spread around their interval, and a probe takes time.
INTERVAL_WITH_JITTER_S = INTERVAL_S * 1.25 + 0.5


def execute_body(component, text):
    """The JSON-RPC call that the orchestrator makes for a step, for tests that call themselves."""
    trace = {"run_id": "00000000-0000-0000-0000-000000000000", "flow_id": "f", "step_id": "s"}
    params = {"component": component, "input": {"text": text}, "attempt": 1, "observability": trace}
    return {"jsonrpc": "2.0", "id": "call-1", "method": "components/execute", "params": params}


RPC_HEADERS = {
    "content-type": "application/json",
    "accept": "application/json, text/event-stream",
}


class Worker(Backend):
    """A Stepflow worker: one backend of the balancer."""

    stop_s = 1.0

    def __init__(self, name, directory, host, port, instance):
        program = [sys.executable, HERE / "worker.py"]
        super().__init__(name, program, directory, host, port, instance)

    def wait_healthy(self):
        super().wait_healthy()
        # The first call loads and compiles what all others use. A worker that is cold while others
        # are warm would rightly be given less work, and a test of fairness would measure that.
        call = execute_body("/echo", "warm-up")
        assert request(self.address, "POST", "/", call, RPC_HEADERS).status == 200
        return self

    def begun(self, component=None, offset=0):
        """The texts of the items that components of this worker were called with, in order."""
        lines = [json.loads(x) for x in self.log(offset).splitlines() if x.startswith('{"begin"')]
        return [x["text"] for x in lines if component in (None, x["begin"])]


class Balancer(lab.Balancer):
    """The program under test, called as the orchestrator calls it."""

    def rpc(self, instance=None, component="/echo", text="x"):
        """A call as the orchestrator makes it, for one instance when named."""
        headers = dict(RPC_HEADERS)
        if instance is not None:
            headers["stepflow-instance-id"] = instance
        return request(self.address, "POST", "/", execute_body(component, text), headers)


# ----------------------------------------------------------------------------- the orchestrator


@dataclass
class Run:
    """A finished run."""

    status: str
    items: list
    seconds: float
    outcomes: Counter = field(init=False)
    instances: Counter = field(init=False)

    def __post_init__(self):
        self.outcomes = Counter(item["result"]["outcome"] for item in self.items)
        self.instances = Counter(result["instance"] for result in self.results())

    def results(self):
        """What the successful items returned, in order of the items."""
        return [i["result"]["result"] for i in self.items if i["result"]["outcome"] == "success"]

    def texts_that(self, outcome, inputs):
        return {
            given["text"]
            for given, item in zip(inputs, self.items, strict=True)
            if item["result"]["outcome"] == outcome
        }


class Orchestrator(Process):
    """The real one, from its package."""

    def __init__(self, name, directory, url):
        import stepflow_orchestrator

        binary = Path(stepflow_orchestrator.__file__).parent / "bin" / "stepflow-server"
        config = {
            "plugins": {
                "builtin": {"type": "builtin"},
                "workers": {"type": "stepflow", "url": url},
            },
            "routes": {
                "/python/{*component}": [{"plugin": "workers"}],
                "/{*component}": [{"plugin": "builtin"}],
            },
            "stateStore": {"type": "inMemory"},
        }
        argv = [binary, "--port", 0, "--config-stdin", "--log-level", "warn"]
        env = clean_environment()
        super().__init__(name, argv, directory, env=env, stdin=json.dumps(config).encode())
        self.address = None

    def wait_healthy(self):
        # It announces the port only after it has initialised the worker behind its URL.
        self.address = ("127.0.0.1", self.announced_port())
        self.call("GET", "/health")
        return self

    def call(self, method, path, body=None, timeout_s=REQUEST_S):
        headers = {"content-type": "application/json"}
        path = "/api/v1" + path
        response = request(self.address, method, path, body, headers, timeout_s)
        assert response.status == 200, f"{method} {path}: {response.status} {response.body!r}"
        return response.json()

    def store(self, component):
        """Stores a flow of one step, `component`, and returns its id."""
        step = {"id": "s1", "component": component, "input": {"$input": "$"}}
        flow = {"name": "test", "steps": [step], "output": {"$step": "s1"}}
        return self.call("POST", "/flows", {"flow": flow})["flowId"]

    def submit(self, component, inputs, concurrency=None):
        """Starts a run, one item per input, and does not wait for it. Without a `concurrency` the
        orchestrator executes all items at once."""
        body = {"flowId": self.store(component), "input": inputs, "wait": True}
        if concurrency is not None:
            body["maxConcurrency"] = concurrency
        return Submission(self, body)

    def run(self, component, inputs, within_s=RUN_S, concurrency=None):
        """Starts a run and waits for its end."""
        return self.submit(component, inputs, concurrency).finish(within_s)


class Submission:
    """A run under way, in a thread: 0.9 answers the request that starts a run when it has ended."""

    def __init__(self, orchestrator, body):
        self._since = time.monotonic()
        self._outcome = []
        arguments = (orchestrator, body)
        self._thread = threading.Thread(target=self._execute, args=arguments, daemon=True)
        self._thread.start()

    def _execute(self, orchestrator, body):
        try:
            answer = orchestrator.call("POST", "/runs", body, timeout_s=RUN_S)
            seconds = time.monotonic() - self._since
            items = orchestrator.call("GET", f"/runs/{answer['runId']}/items")["items"]
            items.sort(key=lambda item: item["itemIndex"])
            self._outcome.append(Run(answer["status"], items, seconds))
        except (AssertionError, OSError) as error:
            self._outcome.append(error)

    def is_running(self):
        return self._thread.is_alive()

    def finish(self, within_s=RUN_S):
        """Waits for the end. A run that takes longer is a flow that hangs."""
        self._thread.join(within_s)
        if self._thread.is_alive():
            raise Deadline(f"a run has not ended within {within_s} s")
        if isinstance(self._outcome[0], BaseException):
            raise self._outcome[0]
        return self._outcome[0]


# ----------------------------------------------------------------------------- putting together


class Lab(lab.Lab):
    """Workers, balancers and orchestrators that one test, or several that share it, started."""

    balancer_type = Balancer

    def start_worker(self, address=None, instance=None):
        """Starts a worker and does not wait for it, so that several can start at once."""
        serial = next(self._serial)
        host, port = address or (self._host(), 0)
        instance = instance or f"pod-{serial}-{random.getrandbits(32):08x}"
        return self._add(Worker(f"worker-{serial}", self.directory, host, port, instance))

    def vacant_address(self):
        """Where a worker can be started later."""
        return free_addresses(self._host(), 1)[0]

    def workers(self, count):
        started = [self.start_worker() for _ in range(count)]
        return [worker.wait_healthy() for worker in started]

    def orchestrator(self, url):
        name = f"orchestrator-{next(self._serial)}"
        return self._add(Orchestrator(name, self.directory, url)).wait_healthy()
