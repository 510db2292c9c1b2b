"""For a conftest to import: a test that failed shows the log of every child of its labs."""

import lab
import pytest

# Lines of each child's log that a failed test shows.
LOG_LINES_SHOWN = 60


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    report = yield
    if report.failed:
        offsets = getattr(item, "log_offsets", {})
        for each in lab.Lab.open_labs:
            for process in each.processes:
                lines = process.log(offsets.get(process.log_path, 0)).splitlines()
                state = "running" if process.is_running() else f"ended {process.process.returncode}"
                shown = "\n".join(lines[-LOG_LINES_SHOWN:]) or "(nothing since the test began)"
                report.sections.append((f"{process.name} ({state}): {process.log_path}", shown))
    return report


@pytest.fixture(autouse=True)
def _log_offsets(request):
    """Where each log stood when the test began: a shared child's earlier lines are not its."""
    labs = lab.Lab.open_labs
    request.node.log_offsets = {p.log_path: p.log_size() for each in labs for p in each.processes}
