"""Real flows through the balancer (Stepflow 0.9): whatever completes directly completes here.

Every case runs with each kernel interface that the balancer knows.
"""

from collections import Counter

import harness
import pytest

STACKS = ["auto", "epoll", "denied"]

# Two, three and four octets a character: a stream that is cut inside one fails the flow, because
# the orchestrator decodes each piece that it reads by itself. It reads about 8 KiB at a time, so
# what is under way at once must stay below that: otherwise its own reads cut characters, and the
# flow fails without a balancer as well.
MULTI_BYTE_TEXT = "Grüße, 世界, здравствуй, 🦀👩‍🚀 – " * 12


def test_echo(stack):
    run = stack.orchestrator.run("/python/echo", [{"text": "hello"}])
    assert run.status == "completed", run.items
    assert [r["text"] for r in run.results()] == ["hello"]


def test_blob_callbacks_carry_multi_byte_text(stack):
    inputs = [{"text": f"{i} {MULTI_BYTE_TEXT}", "n": 5} for i in range(20)]
    run = stack.orchestrator.run("/python/blobs", inputs)
    assert run.status == "completed", run.items
    assert [r["text"] for r in run.results()] == [i["text"] for i in inputs]
    assert all(len(set(r["blobs"])) == 5 for r in run.results())


def test_parallel_callbacks(stack):
    # ASCII, because fifty events at once are more than the orchestrator reads in one piece.
    inputs = [{"text": f"item {i}", "n": 50} for i in range(6)]
    run = stack.orchestrator.run("/python/fanout", inputs)
    assert run.status == "completed", run.items
    assert all(len(set(r["blobs"])) == 50 for r in run.results())


def test_a_component_error_is_passed_through(stack):
    run = stack.orchestrator.run("/python/fail", [{"text": "this"}])
    assert run.status == "failed"
    assert "refused this" in str(run.items[0]["result"]), run.items


def test_batch_is_completed_and_spread_over_all_workers(stack):
    count = 1000 if stack.kind in ("auto", "direct") else 100
    offsets = [worker.log_size() for worker in stack.workers]
    inputs = [{"text": f"item {i}"} for i in range(count)]
    run = stack.orchestrator.run("/python/echo", inputs)
    assert run.status == "completed", run.outcomes
    assert [r["text"] for r in run.results()] == [i["text"] for i in inputs]
    # Each item was executed once, by the worker that the result names.
    begun = {w.instance: w.begun("echo", at) for w, at in zip(stack.workers, offsets, strict=True)}
    assert Counter({instance: len(texts) for instance, texts in begun.items()}) == run.instances
    # Equal workers and the fewest running requests: a fair share, with room for a stutter.
    fair = count / len(stack.workers)
    assert all(share > fair / 2 for share in run.instances.values()), run.instances
    assert len(run.instances) == len(stack.workers), run.instances


def test_batch_of_streams_with_callbacks(stack):
    inputs = [{"text": f"item {i}", "n": 2} for i in range(100)]
    run = stack.orchestrator.run("/python/blobs", inputs)
    assert run.status == "completed", run.outcomes
    assert [r["text"] for r in run.results()] == [i["text"] for i in inputs]


@pytest.mark.balancer
def test_the_driver_is_the_one_that_was_to_be_used(stack):
    if stack.kind == "auto":
        expected = "io_uring" if harness.io_uring_is_granted() else "epoll"
    else:
        expected = "epoll"
    assert stack.balancer.drivers() == {expected}


@pytest.mark.balancer
def test_metrics_are_true_afterwards(stack):
    labels = {worker.label for worker in stack.workers}

    def requests(metrics, **more):
        found = metrics.series("stepflow_lb_requests_total", method="POST", **more)
        return sum(value for have, value in found if have["backend"] in labels)

    def is_idle():
        return stack.balancer.metrics().sum("stepflow_lb_active_connections") == 0

    harness.eventually("earlier exchanges have ended", is_idle, 5)
    before = stack.balancer.metrics()
    echoes = [{"text": str(i)} for i in range(60)]
    assert stack.orchestrator.run("/python/echo", echoes).status == "completed"
    streams = [{"text": str(i), "n": 3} for i in range(20)]
    assert stack.orchestrator.run("/python/blobs", streams).status == "completed"

    # The orchestrator has its results before the balancer has seen the last stream end.
    harness.eventually("no exchange is counted as running any more", is_idle, 5)
    after = stack.balancer.metrics()
    # One request an echo; one stream a blob item, with an answer to each of its two callbacks a
    # round. A stream that the orchestrator leaves after the final event counts like the others.
    expected = 60 + 20 * (1 + 3 * 2)
    assert requests(after) - requests(before) == expected
    assert requests(after, status="200") - requests(before, status="200") == 60 + 20
    assert requests(after, status="202") - requests(before, status="202") == 20 * 3 * 2
    for worker in stack.workers:
        assert after.one("stepflow_lb_backend_health", backend=worker.label) == 1
        assert requests(after, backend=worker.label) > requests(before, backend=worker.label)
        durations = after.sum("stepflow_lb_request_duration_ms_count", backend=worker.label)
        assert durations == after.sum("stepflow_lb_requests_total", backend=worker.label)
    assert after.one("stepflow_lb_backend_pool_size") == len(stack.workers)
