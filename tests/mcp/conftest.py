"""Fixtures of the MCP suite. A test that failed shows the log of every child."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "support"))

import lab as processes  # noqa: E402
import servers  # noqa: E402
from lab_logs import _log_offsets, pytest_runtest_makereport  # noqa: E402

__all__ = ["_log_offsets", "pytest_runtest_makereport"]


def pytest_report_header(config):
    node = servers.NODE or "none"
    return f"mcp {servers.SDK_VERSION}, node: {node}, balancer: {processes.balancer_binary()}"


def pytest_configure(config):
    config.addinivalue_line("markers", "modern: speaks 2026-07-28, which the first SDKs do not")
    config.addinivalue_line("markers", "typescript: needs the packages of package.json")


def pytest_collection_modifyitems(config, items):
    """What another run of this suite tests is left out here; what nothing can test is skipped."""
    others = ("modern", "typescript") if not servers.IS_MODERN else ()
    left_out = [item for item in items if any(item.get_closest_marker(m) for m in others)]
    config.hook.pytest_deselected(items=left_out)
    items[:] = [item for item in items if item not in left_out]
    if not servers.HAS_TYPESCRIPT:
        for item in items:
            if item.get_closest_marker("typescript"):
                item.add_marker(pytest.mark.skip(reason="no Node.js, or not its packages"))


@pytest.fixture
def lab(tmp_path):
    """Processes of one test."""
    lab = servers.Lab(tmp_path)
    yield lab
    lab.close()
