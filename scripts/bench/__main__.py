"""The body of bench.sh, which see. Standard library only."""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import host
import report
from processes import BenchError, Children
from proxies import all_kinds
from samples import Samples
from scenarios import QUICK, SCENARIOS
from stage import Entry, Scenario, Stage, Tools

KEPT = Path("target/bench/samples.json")
QUICK_KINDS = ("ours", "nginx")
# Before the first of each, not counted: pools fill, caches and allocators warm up.
WARM_UP_S = 2.0
# A machine on which others use more than this of a CPU gives ratios, and no figures.
QUIET_CPUS = 0.1


def main() -> int:
    arguments = parse()
    if arguments.check_arguments:
        return 0
    # Whoever ends us wants the processes to end, too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    directory = Path(tempfile.mkdtemp(prefix="stepflow-lb-bench-"))
    try:
        neighbours = host.Neighbours()
        with Children(directory) as children:
            samples, facts = measure(arguments, children)
        foreign = neighbours.cpus()
        if foreign > QUIET_CPUS:
            facts.notes.append(
                f"Others kept {foreign:.1f} CPUs busy meanwhile: "
                "the absolute figures are too high, the ratios hold roughly."
            )
        write(arguments.out, samples, facts)
    except BenchError as error:
        print(f"\nbench: {error}\nlogs are in {directory}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    # Proxies make directories of their own in it.
    shutil.rmtree(directory)
    return 0


def parse() -> argparse.Namespace:
    keys = [scenario.key for scenario in SCENARIOS]
    parser = argparse.ArgumentParser(prog="scripts/bench.sh", description="--help says more")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--only", action="append", choices=keys, metavar="SCENARIO")
    parser.add_argument("--rounds", type=at_least_one)
    parser.add_argument("--seconds", type=at_least_one)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--check-arguments", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    is_quick = arguments.quick
    arguments.rounds = arguments.rounds or (2 if is_quick else 5)
    arguments.seconds = arguments.seconds or (2 if is_quick else 5)
    # Only a whole run may replace the figures of the documentation without being told to.
    is_whole = not is_quick and not arguments.only
    arguments.out = arguments.out or Path("docs" if is_whole else "target/bench")
    return arguments


def at_least_one(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value}: at least 1 is wanted")
    return value


def measure(arguments: argparse.Namespace, children: Children) -> tuple[Samples, report.Facts]:
    tools = Tools(
        balancer=own_copy(children.directory, "BENCH_BALANCER"),
        backend=own_copy(children.directory, "BENCH_BACKEND"),
        streams=own_copy(children.directory, "BENCH_STREAMS"),
        oha=Path(os.environ["BENCH_OHA"]) if os.environ.get("BENCH_OHA") else None,
    )
    kinds = all_kinds(str(tools.balancer), os.environ.get("BENCH_ENVOY", ""))
    if arguments.quick:
        kinds = [kind for kind in kinds if kind.key in QUICK_KINDS]
    for kind in kinds:
        if not kind.is_there():
            print(f"SKIPPED: {kind.label}, which is not installed", file=sys.stderr)
    kinds = [kind for kind in kinds if kind.is_there()]
    stage = Stage(
        children=children,
        tools=tools,
        kinds=kinds,
        cpus=host.Cpus.shared_out(),
        # Two runs at once do not meet.
        subnet=f"127.{random.randrange(16, 240)}.{random.randrange(256)}",
        seconds=arguments.seconds,
        descriptors_max=host.descriptors_max(),
    )
    wanted = arguments.only or (QUICK if arguments.quick else [s.key for s in SCENARIOS])
    scenarios = [scenario for scenario in SCENARIOS if scenario.key in wanted]
    begun = time.monotonic()
    samples = rounds(stage, scenarios, arguments.rounds)
    facts = report.Facts(
        labels={kind.key: kind.label for kind in kinds},
        versions=versions(kinds_programs=[kind.program for kind in kinds], tools=tools),
        rounds=arguments.rounds,
        seconds=arguments.seconds,
        took_s=time.monotonic() - begun,
        notes=stage.notes,
    )
    return samples, facts


def own_copy(directory: Path, variable: str) -> Path:
    """A program that stays the same while we run, whatever is built meanwhile."""
    copy = directory / variable.lower()
    shutil.copy2(os.environ[variable], copy)
    return copy


def ready(stage: Stage, scenario: Scenario) -> list[Entry]:
    """Starts what a scenario needs, and warms it up."""
    entries = scenario.prepare(stage)
    if not entries:
        print(f"SKIPPED: {scenario.title}: see above, or the notes below", file=sys.stderr)
    if scenario.needs_warm_up:
        print(f"warm-up  {scenario.key}", flush=True)
        stage.seconds, seconds = WARM_UP_S, stage.seconds
        for entry in entries:
            entry.measure()
        stage.seconds = seconds
    return entries


def rounds(stage: Stage, scenarios: Sequence[Scenario], count: int) -> Samples:
    """Round by round over all scenarios, and in each from proxy to proxy: what disturbs for a while
    disturbs all of them. Who comes first changes."""
    samples = Samples()
    prepared: dict[str, list[Entry]] = {}
    for number in range(count):
        for scenario in scenarios:
            if number >= scenario.rounds_max:
                continue
            if scenario.key not in prepared:
                prepared[scenario.key] = ready(stage, scenario)
            entries = prepared[scenario.key]
            turn = number % max(1, len(entries))
            for entry in entries[turn:] + entries[:turn]:
                figures = entry.measure()
                samples.add(scenario.key, entry.name, figures)
                said = "  ".join(f"{name} {value:,.2f}" for name, value in figures.items())
                print(f"round {number + 1}  {scenario.key:13}  {entry.name:11}  {said}", flush=True)
        # A run that fails later has been for something.
        KEPT.parent.mkdir(parents=True, exist_ok=True)
        KEPT.write_text(json.dumps(samples.values, indent=1))
    return samples


def versions(kinds_programs: Sequence[str], tools: Tools) -> dict[str, str]:
    found = {"stepflow-load-balancer": host.commit()}
    ways = {
        "nginx": (["nginx", "-v"], r"nginx/(\S+)"),
        "HAProxy": (["haproxy", "-v"], r"version (\S+)"),
        "Envoy": ([os.environ.get("BENCH_ENVOY") or "envoy", "--version"], r"/(\d+\.\d+\.\d+)/"),
        "wrk": (["wrk", "-v"], r"wrk (\S+)"),
        "oha": ([str(tools.oha or "oha"), "--version"], r"oha (\S+)"),
    }
    used = {Path(program).name for program in kinds_programs} | {"wrk", "oha"}
    for name, (argv, pattern) in ways.items():
        if name.lower() in used and (said := host.version(argv, pattern)):
            found[name] = said
    return found


def write(out: Path, samples: Samples, facts: report.Facts) -> None:
    out.mkdir(parents=True, exist_ok=True)
    text = report.markdown(samples, facts)
    print("\n" + text)
    if picture := report.svg(samples, facts):
        (out / "performance.svg").write_text(picture)
    page = out / "PERFORMANCE.md"
    if page.exists() and report.BEGIN in page.read_text():
        page.write_text(report.between_markers(page.read_text(), text))
    else:
        page.write_text(f"{report.BEGIN}\n{text}{report.END}\n")
    print(f"written: {page}, all values: {KEPT}")


if __name__ == "__main__":
    sys.exit(main())
