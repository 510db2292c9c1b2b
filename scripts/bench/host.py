"""What the benchmark runs on: CPUs, versions, limits, memory cgroups."""

from __future__ import annotations

import contextlib
import os
import platform
import re
import resource
import shutil
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

CGROUPS = Path("/sys/fs/cgroup")


@dataclass(frozen=True)
class Cpus:
    """Which CPUs the proxy has to itself, and which are for load and backends."""

    proxy: list[int]
    load: list[int]

    @classmethod
    def shared_out(cls) -> Cpus:
        """The first for the proxy, all others for the rest; with one CPU they share it."""
        usable = sorted(os.sched_getaffinity(0))
        return cls(usable[:1], usable[1:] or usable)

    def for_two_workers(self) -> tuple[list[int], list[int], bool]:
        """CPUs for two workers and for the load, and whether these are apart."""
        usable = sorted(set(self.proxy) | set(self.load))
        if len(usable) >= 4:
            return usable[:2], usable[2:], True
        return usable[:2], usable, False


def cpu_model() -> str:
    text = Path("/proc/cpuinfo").read_text()
    found = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    return found[1] if found else platform.machine()


def kernel() -> str:
    return platform.release()


def congestion_control() -> str:
    """Of TCP, for sockets that do not choose: BBR paces with timers, which cost."""
    return Path("/proc/sys/net/ipv4/tcp_congestion_control").read_text().strip()


def memory_gib() -> float:
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30


def is_virtual() -> bool:
    return "hypervisor" in Path("/proc/cpuinfo").read_text()


class Neighbours:
    """How many CPUs others keep busy while we run."""

    def __init__(self) -> None:
        self._begun = time.monotonic()
        self._before_s = busy_s() - own_s()

    def cpus(self) -> float:
        """Since the beginning. Our children must have ended: only then is their time known."""
        return (busy_s() - own_s() - self._before_s) / (time.monotonic() - self._begun)


def own_s() -> float:
    """CPU time of this process and of all that it started and that has ended."""
    used = os.times()
    return used.user + used.system + used.children_user + used.children_system


def busy_s() -> float:
    """CPU time that anybody used since the start of the machine, and what the host took away."""
    fields = list(map(int, Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]))
    user, nice, system, _idle, _iowait, irq, softirq, steal = fields[:8]
    ticks = user + nice + system + irq + softirq + steal
    return ticks / os.sysconf("SC_CLK_TCK")


def descriptors_max() -> int:
    """Raises our limit as far as it goes; children inherit it."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard


def version(argv: list[str], pattern: str) -> str:
    """What a program calls its version; empty if it is not there."""
    if shutil.which(argv[0]) is None:
        return ""
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    found = re.search(pattern, done.stdout + done.stderr)
    return found[1] if found else "of unknown version"


def commit() -> str:
    """The commit that is measured, and whether the tree differs from it."""
    done = subprocess.run(
        ["git", "describe", "--always", "--dirty", "--exclude=*"],
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout.strip() or "not in git"


@dataclass(frozen=True)
class MemoryGroup:
    """A memory cgroup of our own: what runs in it is charged with all it uses, kernel included."""

    path: Path
    is_v2: bool

    def add(self, pid: int) -> None:
        (self.path / "cgroup.procs").write_text(str(pid))

    def used_bytes(self) -> int:
        """Memory of the processes, of their page tables, sockets and socket buffers."""
        if self.is_v2:
            return int((self.path / "memory.current").read_text())
        names = ("memory.usage_in_bytes", "memory.kmem.tcp.usage_in_bytes")
        return sum(int((self.path / name).read_text()) for name in names)


@contextlib.contextmanager
def memory_group(limit_bytes: int) -> Iterator[MemoryGroup | None]:
    """A cgroup with this limit; `None` where we may not make one."""
    is_v2 = (CGROUPS / "cgroup.controllers").exists()
    parent = CGROUPS if is_v2 else CGROUPS / "memory"
    path = parent / f"stepflow-lb-bench-{os.getpid()}"
    try:
        path.mkdir()
    except OSError:
        yield None
        return
    try:
        names = ["memory.max"] if is_v2 else ["memory.limit_in_bytes"]
        if not is_v2:
            # Version 1 counts socket buffers apart, and only where they have a limit.
            names.append("memory.kmem.tcp.limit_in_bytes")
        for name in names:
            (path / name).write_text(str(limit_bytes))
        yield MemoryGroup(path, is_v2)
    except (FileNotFoundError, PermissionError):
        yield None
    finally:
        remove(path)


def remove(group: Path) -> None:
    """Removes a cgroup, whose last process may still be on its way out."""
    deadline = time.monotonic() + 10.0
    while True:
        try:
            group.rmdir()
            return
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)
