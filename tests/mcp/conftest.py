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


@pytest.fixture
def lab(tmp_path):
    """Processes of one test."""
    lab = servers.Lab(tmp_path)
    yield lab
    lab.close()
