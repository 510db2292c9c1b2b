"""Real flows with Stepflow 0.11, whose wire differs from that of 0.9.

From 0.10 on a worker sends blobs to an address that it learns from `initialize`, and the orchestrator
initialises once per URL: behind a balancer that does not replay it, only one worker learns it.
"""

import signal
import threading
from collections import Counter

import harness
import pytest

STACKS = ["auto", "epoll"]


def test_echo(stack):
    run = stack.orchestrator.run("/python/echo", [{"text": "hello"}])
    assert run.status == "completed", run.items
    assert [r["text"] for r in run.results()] == ["hello"]


def test_batch_is_completed_and_spread_over_all_workers(stack):
    offsets = [worker.log_size() for worker in stack.workers]
    inputs = [{"text": f"item {i}"} for i in range(300)]
    run = stack.orchestrator.run("/python/echo", inputs)
    assert run.status == "completed", run.outcomes
    assert [r["text"] for r in run.results()] == [i["text"] for i in inputs]
    begun = {w.instance: w.begun("echo", at) for w, at in zip(stack.workers, offsets, strict=True)}
    assert Counter({instance: len(texts) for instance, texts in begun.items()}) == run.instances
    fair = len(inputs) / len(stack.workers)
    assert all(share > fair / 2 for share in run.instances.values()), run.instances
    assert len(run.instances) == len(stack.workers), run.instances


def test_a_component_error_is_passed_through(stack):
    run = stack.orchestrator.run("/python/fail", [{"text": "this"}])
    assert run.status == "failed"
    assert "refused this" in str(run.items[0]["result"]), run.items


def test_subflows_call_back_over_the_stream(stack):
    # Streams are opened at the first callback only, and each item needs a second worker slot for
    # its inner flow while its own stream is open.
    inner = stack.orchestrator.store("/python/echo")
    inputs = [{"text": f"Grüße {i} 世界", "flow_id": inner} for i in range(20)]
    run = stack.orchestrator.run("/python/subflow", inputs)
    assert run.status == "completed", run.items
    assert [r["nested"] for r in run.results()] == [i["text"] for i in inputs]


def blobs(orchestrator, texts):
    """Runs a flow that stores and fetches blobs, one item per text."""
    return orchestrator.run("/python/blobs", [{"text": text, "n": 2} for text in texts])


def assert_blobs_work_on(run, workers, texts):
    assert run.status == "completed", run.items
    assert [r["text"] for r in run.results()] == texts
    assert all(len(r["blobs"]) == 2 for r in run.results()), run.results()
    # Every worker has had some.
    assert set(run.instances) == {w.instance for w in workers}, run.instances


TEXTS = [f"Grüße {i} 世界" for i in range(60)]


@pytest.mark.balancer
@pytest.mark.parametrize("driver", STACKS)
def test_blobs_work_on_every_worker(lab, driver):
    workers = lab.workers(3)
    balancer = lab.balancer(workers, STEPFLOW_LB_IO_DRIVER=driver)
    orchestrator = lab.orchestrator(balancer.url)
    # From the very first call on: the orchestrator is ready when every worker is initialised.
    assert_blobs_work_on(blobs(orchestrator, TEXTS), workers, TEXTS)
    metrics = balancer.metrics()
    assert metrics.one("stepflow_lb_initializations_total") == 1
    assert metrics.one("stepflow_lb_initialize_replays_total", outcome="passed") == 2
    assert metrics.sum("stepflow_lb_initialize_replays_total") == 2


@pytest.mark.balancer
def test_blobs_work_on_a_worker_that_is_added_later_and_on_one_that_restarts(lab):
    workers = lab.workers(2)
    vacant = lab.vacant_address()
    balancer = lab.balancer(workers, later=[vacant], **harness.QUICK_HEALTH)
    orchestrator = lab.orchestrator(balancer.url)
    assert_blobs_work_on(blobs(orchestrator, TEXTS), workers, TEXTS)
    workers.append(lab.start_worker(address=vacant).wait_healthy())
    balancer.wait_for_backends(3)
    assert_blobs_work_on(blobs(orchestrator, TEXTS), workers, TEXTS)
    # Another process at the same address. The orchestrator does not notice, and says nothing.
    old = workers.pop(0)
    old.stop()
    workers.append(lab.start_worker(address=old.address).wait_healthy())

    def is_known():
        names = {"instance_id": workers[-1].instance}
        return balancer.metrics().sum("stepflow_lb_backend_health", **names) == 1

    harness.eventually("the new process takes work", is_known, 20)
    assert_blobs_work_on(blobs(orchestrator, TEXTS), workers, TEXTS)


@pytest.mark.balancer
def test_without_the_replay_blobs_work_on_one_worker_only(lab):
    # What it is good for. If this fails, Stepflow has changed and the replay may have become needless.
    workers = lab.workers(3)
    balancer = lab.balancer(workers, STEPFLOW_LB_INITIALIZE_REPLAY="off")
    orchestrator = lab.orchestrator(balancer.url)
    run = blobs(orchestrator, TEXTS)
    assert run.status == "failed", run.outcomes
    assert len(run.instances) == 1, run.instances
    assert "Blob API" in str(run.items), run.items


@pytest.mark.balancer
def test_an_orchestrator_that_starts_again_elsewhere_is_believed(lab):
    workers = lab.workers(3)
    balancer = lab.balancer(workers)
    first = lab.orchestrator(balancer.url)
    assert_blobs_work_on(blobs(first, TEXTS), workers, TEXTS)
    # Its port, and so the address of its blobs, is another one, and the old one is gone.
    first.stop()
    second = lab.orchestrator(balancer.url)
    assert_blobs_work_on(blobs(second, TEXTS), workers, TEXTS)
    assert balancer.metrics().one("stepflow_lb_initializations_total") == 2


@pytest.mark.balancer
def test_the_orchestrator_tries_again_while_no_worker_is_healthy(lab):
    # 0.11 retries what our answer says may be retried, for about four seconds; 0.9 fails the flow.
    worker = lab.workers(1)[0]
    quick = {"HEALTH_CHECK_INTERVAL": "200ms", "HEALTH_CHECK_TIMEOUT": "200ms", "MAX_FAILURES": 1}
    balancer = lab.balancer([worker], **quick)
    orchestrator = lab.orchestrator(balancer.url)
    worker.send(signal.SIGSTOP)
    balancer.wait_for_backends(0, within_s=10)
    submitted = orchestrator.submit("/python/echo", [{"text": "patient"}])

    def was_refused():
        refused = {"status": "503", "method": "POST"}
        return balancer.metrics().sum("stepflow_lb_requests_total", **refused) > 0

    harness.eventually("the first attempt was refused", was_refused, 10)
    worker.send(signal.SIGCONT)
    run = submitted.finish(within_s=30)
    assert run.status == "completed", run.items


@pytest.mark.balancer
def test_a_rolling_restart_loses_no_flow(lab):
    # A worker that shuts down closes connections that a request may just have entered. Nobody can
    # know whether it was executed, so the balancer says that the transport failed, which 0.11 takes
    # as a reason to try again and 0.9 as the end of the flow.
    workers = lab.workers(3)
    balancer = lab.balancer(workers, **harness.QUICK_HEALTH)
    orchestrator = lab.orchestrator(balancer.url)
    flow_count, is_over = 0, threading.Event()
    failed = []

    def keep_working():
        nonlocal flow_count
        while not is_over.is_set():
            run = orchestrator.run("/python/echo", [{"text": str(i)} for i in range(20)])
            flow_count += len(run.items)
            failed.extend(i for i in run.items if i["result"]["outcome"] != "success")

    worker_thread = threading.Thread(target=keep_working)
    worker_thread.start()
    try:
        for old in workers:
            # SIGTERM: it closes its listener, answers what it has, and ends.
            old.stop()
            new = lab.start_worker(address=old.address).wait_healthy()

            def serves(instance=new.instance):
                return balancer.rpc(instance).status == 200

            harness.eventually("the new one serves", serves, harness.INTERVAL_WITH_JITTER_S)
    finally:
        is_over.set()
        worker_thread.join()
    assert not failed, (len(failed), flow_count, [str(i) for i in failed[:3]])
    assert flow_count > 300
