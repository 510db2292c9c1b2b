"""Fixtures, and the logs of every child of a test that failed.

`--direct` points the orchestrator at a worker instead of at the balancer. It shows that a failing
case is the balancer's doing and not Stepflow's, and needs no balancer to be built.
"""

from dataclasses import dataclass

import harness
import pytest
from lab_logs import _log_offsets, pytest_runtest_makereport

__all__ = ["_log_offsets", "pytest_runtest_makereport"]

# The two generations of Stepflow speak different wires: each venv runs what fits its packages.
if harness.STEPFLOW_VERSION.startswith("0.9."):
    collect_ignore_glob = ["test_stepflow_0_11.py"]
else:
    collect_ignore_glob = ["test_flows.py", "test_trouble.py"]


def pytest_addoption(parser):
    parser.addoption("--direct", action="store_true", help="no balancer: one worker, directly")


def pytest_configure(config):
    config.addinivalue_line("markers", "balancer: makes no sense without the balancer")


def pytest_report_header(config):
    binary = "none (--direct)" if config.getoption("--direct") else harness.balancer_binary()
    ring = "granted" if harness.io_uring_is_granted() else "refused"
    return f"stepflow-py {harness.STEPFLOW_VERSION}, balancer: {binary}, io_uring: {ring}"


def pytest_generate_tests(metafunc):
    if "stack" in metafunc.fixturenames:
        direct = metafunc.config.getoption("--direct")
        names = ["direct"] if direct else list(getattr(metafunc.module, "STACKS", ["auto"]))
        metafunc.parametrize("stack", names, indirect=True, scope="module")


def pytest_collection_modifyitems(config, items):
    if config.getoption("--direct"):
        config.hook.pytest_deselected(items=[i for i in items if needs_balancer(i)])
        items[:] = [i for i in items if not needs_balancer(i)]


def needs_balancer(item):
    return item.get_closest_marker("balancer") is not None


@pytest.fixture
def lab(tmp_path):
    """Processes of one test alone, for tests that break them."""
    lab = harness.Lab(tmp_path)
    yield lab
    lab.close()


@pytest.fixture(scope="session")
def fleet(tmp_path_factory):
    """Three workers that all well-behaved tests share."""
    lab = harness.Lab(tmp_path_factory.mktemp("fleet"))
    yield lab.workers(3)
    lab.close()


@dataclass
class Stack:
    """Workers, what stands in front of them, and the orchestrator that runs flows through it."""

    kind: str
    workers: list
    balancer: harness.Balancer | None
    orchestrator: harness.Orchestrator


@pytest.fixture
def stack(request, shared_stacks):
    return shared_stacks(request.param)


@pytest.fixture(scope="module")
def shared_stacks(tmp_path_factory, fleet):
    """Stacks by kind, each started when the first test asks for it.

    `auto` leaves the driver to the balancer, `epoll` orders it, `denied` refuses io_uring by a
    seccomp filter, `direct` has no balancer.
    """
    lab = harness.Lab(tmp_path_factory.mktemp("stacks"))
    stacks = {}

    def stack(kind):
        if kind in stacks:
            return stacks[kind]
        if kind == "direct":
            orchestrator = lab.orchestrator(f"http://{fleet[0].label}")
            stacks[kind] = Stack(kind, fleet[:1], None, orchestrator)
            return stacks[kind]
        options = {
            "auto": {},
            "epoll": {"STEPFLOW_LB_IO_DRIVER": "epoll"},
            "denied": {"launcher": harness.denying_io_uring()},
        }[kind]
        balancer = lab.balancer(fleet, **options)
        stacks[kind] = Stack(kind, fleet, balancer, lab.orchestrator(balancer.url))
        return stacks[kind]

    yield stack
    lab.close()
