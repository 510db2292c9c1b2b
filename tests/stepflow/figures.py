"""Prints flows per second through the balancer against direct.

    python tests/stepflow/figures.py [--rounds N] [--items N]

One worker, two orchestrators: one points at the worker, the other at a balancer in front of the
same worker. Rounds are interleaved, so that what the machine does meanwhile meets both alike; the
median of each and their ratio are printed. A third orchestrator points at a balancer in front of
three workers, which is what the balancer is for. Takes about a minute. Figures are for comparing on
one machine: worker, orchestrator and balancer share its cores.
"""

import argparse
import os
import platform
import statistics
import tempfile

import harness

# Below the backlog of a worker's listener, 128, beyond which a connection waits for a second.
CONCURRENCY = 100
BATCHES = {
    "echo": ("/python/echo", 1, {}),
    # Five rounds of two callbacks over one stream.
    "blobs": ("/python/blobs", 0.1, {"n": 5}),
}


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=9, help="of each kind (default 9)")
    parser.add_argument("--items", type=int, default=2000, help="echo items a round (default 2000)")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="stepflow-figures-") as directory:
        lab = harness.Lab(directory)
        try:
            measure(lab, arguments.rounds, arguments.items)
        finally:
            lab.close()


def measure(lab, rounds, items):
    workers = lab.workers(3)
    one = lab.balancer(workers[:1])
    three = lab.balancer(workers)
    ways = {
        "direct, 1 worker": lab.orchestrator(f"http://{workers[0].label}"),
        "balancer, 1 worker": lab.orchestrator(one.url),
        "balancer, 3 workers": lab.orchestrator(three.url),
    }
    print(f"stepflow-py {harness.STEPFLOW_VERSION}, {harness.balancer_binary()}")
    print(f"driver {', '.join(sorted(one.drivers()))}, {os.cpu_count()} CPUs, {platform.release()}")
    for name, (component, share, given) in BATCHES.items():
        count = max(1, int(items * share))
        inputs = [{"text": f"item {i}", **given} for i in range(count)]
        rates = {way: [] for way in ways}
        for round_index in range(rounds + 1):
            for way, orchestrator in ways.items():
                run = orchestrator.run(component, inputs, concurrency=CONCURRENCY)
                assert run.status == "completed", (way, run.outcomes)
                # The first round fills pools and caches.
                if round_index > 0:
                    rates[way].append(count / run.seconds)
        report(name, count, rounds, rates)


def report(name, count, rounds, rates):
    print(f"\n{name}: {count} items a run, {CONCURRENCY} at once, median of {rounds} runs")
    base = statistics.median(next(iter(rates.values())))
    for way, each in rates.items():
        median = statistics.median(each)
        spread = f"{min(each):.0f}..{max(each):.0f}"
        print(f"  {way:20} {median:8.0f} flows/s  ({spread})  {median / base:5.2f} of direct")


if __name__ == "__main__":
    main()
