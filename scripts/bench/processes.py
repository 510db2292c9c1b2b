"""Processes that a benchmark starts, what they cost, and how it waits for them.

Whatever is started here ends with the `Children` that started it, by its pid. One that ends before
its time is an error that carries the end of its log.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

LOG_TAIL_BYTES = 4000
END_WITHIN_S = 5.0
PAUSE_S = 0.02


class BenchError(Exception):
    """Why there is no result, for whoever started the benchmark."""


@dataclass
class Child:
    """A process of ours, its log, and its own children."""

    name: str
    process: subprocess.Popen[bytes]
    log: Path
    _pids: list[int] = field(default_factory=list)

    @property
    def pid(self) -> int:
        return self.process.pid

    def text(self) -> str:
        return self.log.read_text(errors="replace")

    def check(self) -> None:
        """Raises if it has ended."""
        status = self.process.poll()
        if status is not None:
            tail = self.text()[-LOG_TAIL_BYTES:]
            raise BenchError(f"{self.name} ended with {status}; its log ({self.log}):\n{tail}")

    def pids(self) -> list[int]:
        """The process and its descendants. Found once: servers fork while they start."""
        if not self._pids:
            self._pids = tree(self.pid)
        return self._pids

    def cpu_s(self) -> float:
        """CPU time of all its threads, user and kernel, to the nanosecond.

        `schedstat` rather than `stat`, which counts in ticks of 10 ms.
        """
        total_ns = 0
        for pid in self.pids():
            for task in Path(f"/proc/{pid}/task").iterdir():
                with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                    total_ns += int((task / "schedstat").read_text().split()[0])
        return total_ns / 1e9

    def pss_bytes(self) -> int:
        """Memory, with what is shared between processes counted once."""
        total_kib = 0
        for pid in self.pids():
            rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
            found = re.search(r"^Pss:\s+(\d+) kB$", rollup, re.MULTILINE)
            if not found:
                raise BenchError(f"/proc/{pid}/smaps_rollup has no Pss")
            total_kib += int(found[1])
        return total_kib * 1024

    def resident_bytes(self) -> int:
        """Resident memory: what `pss_bytes` says, for less."""
        pages = (int(Path(f"/proc/{pid}/statm").read_text().split()[1]) for pid in self.pids())
        return sum(pages) * os.sysconf("SC_PAGE_SIZE")


class Children(contextlib.ExitStack):
    """Starts processes and ends them, the youngest first."""

    def __init__(self, directory: Path) -> None:
        super().__init__()
        self.directory = directory

    def start(
        self,
        name: str,
        argv: Iterable[object],
        cpus: Iterable[int],
        env: Mapping[str, str] | None = None,
    ) -> Child:
        """Starts a program on these CPUs. Its output goes to a log of its own."""
        log = self.directory / f"{name}.log"
        pinned = ["taskset", "-c", ",".join(map(str, cpus)), *map(str, argv)]
        with log.open("wb") as output:
            process = subprocess.Popen(
                pinned,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={"PATH": os.environ["PATH"], **(env or {})},
                cwd=self.directory,
            )
        child = Child(name, process, log)
        self.callback(end, child)
        return child


def end(child: Child) -> None:
    """Ends a process and whatever it forked."""
    pids = tree(child.pid)
    child.process.terminate()
    try:
        child.process.wait(END_WITHIN_S)
    except subprocess.TimeoutExpired:
        for pid in reversed(pids):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        child.process.wait()


def tree(root: int) -> list[int]:
    """A process and its descendants, parents first."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                parent = int((entry / "stat").read_text().rsplit(") ", 1)[1].split()[1])
                children.setdefault(parent, []).append(int(entry.name))
    found = [root]
    for pid in found:
        found.extend(children.get(pid, []))
    return found


class Most:
    """The largest value of a number, watched from a thread of ours while the `with` lasts."""

    def __init__(self, read: Callable[[], int]) -> None:
        self._read = read
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self.most = read()

    def _watch(self) -> None:
        while not self._done.wait(PAUSE_S):
            # A process that has gone is somebody else's news.
            with contextlib.suppress(OSError):
                self.most = max(self.most, self._read())

    def __enter__(self) -> Most:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()


def wait_for(
    condition: Callable[[], bool],
    what: str,
    children: Iterable[Child] = (),
    within_s: float = 30.0,
) -> None:
    """Waits until the condition holds, as long as these processes live."""
    children = list(children)
    deadline = time.monotonic() + within_s
    while not condition():
        for child in children:
            child.check()
        if time.monotonic() > deadline:
            logs = "".join(f"\n{c.name} ({c.log}):\n{c.text()[-LOG_TAIL_BYTES:]}" for c in children)
            raise BenchError(f"not within {within_s:.0f} s: {what}{logs}")
        time.sleep(PAUSE_S)


def free_port(host: str) -> int:
    """A port that nothing listens on, on an address that this run alone uses."""
    with socket.socket() as probe:
        probe.bind((host, 0))
        port: int = probe.getsockname()[1]
        return port


def run(argv: Iterable[object], cpus: Iterable[int], within_s: float) -> str:
    """What a program says that comes to its own end; an error if it fails or takes too long."""
    pinned = ["taskset", "-c", ",".join(map(str, cpus)), *map(str, argv)]
    try:
        done = subprocess.run(pinned, capture_output=True, text=True, timeout=within_s, check=False)
    except subprocess.TimeoutExpired as error:
        raise BenchError(f"not done within {within_s:.0f} s: {' '.join(pinned)}") from error
    if done.returncode != 0:
        said = (done.stdout + done.stderr)[-LOG_TAIL_BYTES:]
        raise BenchError(f"{' '.join(pinned)} ended with {done.returncode}:\n{said}")
    return done.stdout
