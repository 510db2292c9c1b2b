"""Fixtures of the suite of streams. A test that failed shows the log of every child."""

import importlib.metadata
import shutil
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "support"))

import browser as chromium  # noqa: E402
import harness  # noqa: E402
import lab as processes  # noqa: E402
from lab_logs import _log_offsets, pytest_runtest_makereport  # noqa: E402

__all__ = ["_log_offsets", "pytest_runtest_makereport"]

# Markers, the programs that their tests need, and where those are.
PROGRAMS = {
    "browser": ("Chromium", chromium.CHROMIUM),
    "curl": ("curl", shutil.which("curl")),
    "node": ("Node.js", shutil.which("node")),
}


def pytest_configure(config):
    for marker, (program, _) in PROGRAMS.items():
        config.addinivalue_line("markers", f"{marker}: needs {program}")
    config.addinivalue_line("markers", "every_driver: runs with io_uring and with epoll")


def pytest_generate_tests(metafunc):
    if "lab" in metafunc.fixturenames:
        is_for_both = metafunc.definition.get_closest_marker("every_driver")
        drivers = ["auto", "epoll"] if is_for_both else ["auto"]
        metafunc.parametrize("lab", drivers, indirect=True)


def pytest_report_header(config):
    found = ", ".join(f"{name}: {path or 'none'}" for name, path in PROGRAMS.values())
    openai = importlib.metadata.version("openai")
    return f"openai {openai}, {found}, balancer: {processes.balancer_binary()}"


def pytest_collection_modifyitems(items):
    for item in items:
        for marker, (program, path) in PROGRAMS.items():
            if path is None and item.get_closest_marker(marker):
                item.add_marker(pytest.mark.skip(reason=f"{program} is not there"))


@pytest.fixture
def lab(tmp_path, request):
    """Backends, balancers and clients of one test, with one I/O driver."""
    lab = harness.Lab(tmp_path, request.param)
    yield lab
    lab.close()


@pytest.fixture(scope="session")
def browser(tmp_path_factory):
    """One browser for all tests that do not end it."""
    lab = harness.Lab(tmp_path_factory.mktemp("browser"), driver="auto")
    yield lab.browser()
    lab.close()


@pytest.fixture
def tab_of(browser):
    """Opens a tab with the page that a balancer brings from its backend."""
    tabs = []

    def open_tab(balancer):
        tabs.append(browser.tab(f"{balancer.url}/page"))
        return tabs[-1]

    yield open_tab
    for tab in tabs:
        tab.close()
