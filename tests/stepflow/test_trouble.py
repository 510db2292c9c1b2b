"""What happens to real flows (Stepflow 0.9) when workers are slow, die, restart or are gone."""

import signal
import threading
import time

import harness
import pytest

pytestmark = pytest.mark.balancer

class HealthWatch:
    """Scrapes `backend_health` of one backend until stopped, and keeps what it saw."""

    def __init__(self, balancer, worker):
        self.balancer, self.worker, self.seen = balancer, worker, []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._stop.set()
        self._thread.join()

    def _watch(self):
        while not self._stop.wait(0.05):
            metrics = self.balancer.metrics()
            self.seen.append(metrics.sum("stepflow_lb_backend_health", backend=self.worker.label))


def test_a_worker_that_blocks_its_event_loop_still_completes_its_flow(lab):
    workers = lab.workers(3)
    balancer = lab.balancer(workers, **harness.QUICK_HEALTH)
    orchestrator = lab.orchestrator(balancer.url)
    submitted = orchestrator.submit("/python/busy", [{"text": "busy", "delay_s": 6.0}])

    def busy_worker():
        return next((w for w in workers if w.begun("busy")), None)

    busy = harness.eventually("a worker has the item", busy_worker, 10)
    with HealthWatch(balancer, busy) as watch:
        harness.eventually("it counts as unhealthy", lambda: 0 in watch.seen, 5)
        assert balancer.health()[1]["backends"] == {"total": 3, "healthy": 2, "unhealthy": 1}
        # Other work goes on meanwhile, without the busy one.
        others = orchestrator.run("/python/echo", [{"text": str(i)} for i in range(60)])
        assert others.status == "completed" and busy.instance not in others.instances
        assert submitted.is_running(), "the busy item ended too early"
        run = submitted.finish(within_s=30)
        # Its last callback was answered by a worker that fails its health checks: only it can.
        assert run.status == "completed", run.items
        assert run.instances == {busy.instance: 1} and run.seconds >= 6
        balancer.wait_for_backends(3, within_s=5)
        harness.eventually("it counts as healthy again", lambda: watch.seen[-1] == 1, 5)


def test_a_burst_beyond_the_backlog_of_the_only_worker_is_completed(lab):
    # A worker's listener holds 128 connections that it has not accepted; what comes on top is
    # dropped by its kernel and tried again after one second, after three, after seven. Without a
    # balancer the orchestrator waits that out, or uses a connection that has become free.
    worker = lab.workers(1)[0]
    orchestrator = lab.orchestrator(lab.balancer([worker]).url)
    inputs = [{"text": f"item {i}"} for i in range(2000)]
    run = orchestrator.run("/python/echo", inputs)
    assert run.status == "completed", run.outcomes


def test_a_killed_worker_fails_only_its_own_flows_and_quickly(lab):
    workers = lab.workers(3)
    balancer = lab.balancer(workers, **harness.QUICK_HEALTH)
    orchestrator = lab.orchestrator(balancer.url)
    # A run for each, so that each tells by itself when it ended.
    inputs = [{"text": f"item {i}", "n": 50, "delay_s": 0.1} for i in range(12)]
    submitted = {i["text"]: orchestrator.submit("/python/blobs", [i]) for i in inputs}
    wait_until_all_have_begun(workers, inputs)
    victim = workers[0]
    lost = set(victim.begun("blobs"))
    # Least connections: about four streams each; their callbacks count as well while they last.
    assert 2 <= len(lost) <= 6, [len(w.begun("blobs")) for w in workers]
    assert all(run.is_running() for run in submitted.values())
    victim.kill()
    for text in lost:
        assert submitted[text].finish(within_s=5).status == "failed"
    others = set(submitted) - lost
    assert all(submitted[text].is_running() for text in others), "the kill came too late"
    for text in others:
        assert submitted[text].finish().status == "completed"
    # Whoever comes next is not sent to the dead one.
    after = orchestrator.run("/python/echo", [{"text": str(i)} for i in range(30)])
    assert after.status == "completed" and victim.instance not in after.instances


def test_a_killed_worker_fails_only_its_own_items_of_a_batch(lab):
    workers = lab.workers(3)
    # Health checks that notice nothing in time: the failed connects alone must do.
    balancer = lab.balancer(workers, HEALTH_CHECK_INTERVAL="60s")
    orchestrator = lab.orchestrator(balancer.url)
    inputs = [{"text": f"item {i}", "n": 20, "delay_s": 0.1} for i in range(12)]
    submitted = orchestrator.submit("/python/blobs", inputs)
    wait_until_all_have_begun(workers, inputs)
    victim = workers[0]
    lost = set(victim.begun("blobs"))
    victim.kill()
    after = orchestrator.run("/python/echo", [{"text": str(i)} for i in range(60)])
    assert after.status == "completed" and victim.instance not in after.instances
    run = submitted.finish()
    assert run.texts_that("failed", inputs) == lost, run.items
    assert run.texts_that("success", inputs) == {i["text"] for i in inputs} - lost


def wait_until_all_have_begun(workers, inputs):
    def all_begun():
        return sum(len(worker.begun("blobs")) for worker in workers) == len(inputs)

    harness.eventually("every item is running", all_begun, 20)


def test_a_restarted_worker_takes_work_within_one_interval_and_its_old_id_is_gone(lab):
    workers = lab.workers(3)
    balancer = lab.balancer(workers, **harness.QUICK_HEALTH)
    orchestrator = lab.orchestrator(balancer.url)
    old = workers[0]
    assert balancer.rpc(old.instance).status == 200
    old.kill()
    harness.eventually(
        "the dead one counts as unhealthy",
        lambda: balancer.health()[1]["backends"]["unhealthy"] == 1,
        harness.INTERVAL_WITH_JITTER_S * 3,
    )
    new = lab.start_worker(address=old.address).wait_healthy()
    assert new.instance != old.instance and new.address == old.address
    listening = time.monotonic()

    def knows_the_new():
        return balancer.rpc(new.instance).status == 200

    harness.eventually("the new id is known", knows_the_new, harness.INTERVAL_WITH_JITTER_S)
    noticed_after_s = time.monotonic() - listening
    run = orchestrator.run("/python/echo", [{"text": str(i)} for i in range(90)])
    assert run.status == "completed"
    assert run.instances[new.instance] > 0, (noticed_after_s, run.instances)
    check_not_available(balancer.rpc(old.instance), old.instance)
    # The series of the old instance is gone, not left behind at its last value.
    series = balancer.metrics().series("stepflow_lb_backend_health", backend=new.label)
    assert [(s["instance_id"], value) for s, value in series] == [(new.instance, 1)]


def test_an_unknown_instance_is_answered_so_that_the_orchestrator_understands(lab):
    workers = lab.workers(1)
    balancer = lab.balancer(workers)
    check_not_available(balancer.rpc("no-such-pod"), "no-such-pod")
    known = balancer.rpc(workers[0].instance)
    assert known.status == 200
    assert known.headers["x-stepflow-routed-instance"] == workers[0].instance
    # What the balancer itself answered is not held against a backend.
    metrics = balancer.metrics()
    assert metrics.sum("stepflow_lb_requests_total", backend=workers[0].label, status="503") == 0
    assert metrics.sum("stepflow_lb_requests_total", status="503", method="POST") == 1


def test_without_a_healthy_worker_the_balancer_says_so_and_recovers(lab):
    workers = lab.workers(2)
    balancer = lab.balancer(workers, **harness.QUICK_HEALTH)
    orchestrator = lab.orchestrator(balancer.url)
    for worker in workers:
        worker.kill()

    def nobody():
        return balancer.health() == (
            503,
            {"status": "unhealthy", "backends": {"total": 2, "healthy": 0, "unhealthy": 2}},
        )

    harness.eventually("the balancer counts nobody as healthy", nobody, 10)
    response = balancer.rpc()
    assert response.status == 503 and response.headers["retry-after"]
    error = response.json()
    assert error["jsonrpc"] == "2.0" and isinstance(error["id"], str)
    assert error["error"]["code"] == -32302 and error["error"]["data"]["reason"]
    # The orchestrator fails the flow at once and with our words, and does not hang.
    run = orchestrator.run("/python/echo", [{"text": "x"}], within_s=10)
    assert run.status == "failed" and error["error"]["message"] in str(run.items), run.items
    health = balancer.metrics().series("stepflow_lb_backend_health")
    assert [value for _, value in health] == [0, 0]

    lab.start_worker(address=workers[0].address).wait_healthy()
    balancer.wait_for_backends(1, within_s=harness.INTERVAL_WITH_JITTER_S)
    assert orchestrator.run("/python/echo", [{"text": "x"}]).status == "completed"


def test_sigterm_lets_a_running_flow_finish_and_exits_with_zero(lab):
    workers = lab.workers(2)
    # Short enough for the streams to go on after the listeners have closed.
    balancer = lab.balancer(workers, STEPFLOW_LB_DRAIN_GRACE="500ms")
    orchestrator = lab.orchestrator(balancer.url)
    # One callback round at once, then three seconds in which only the stream is open.
    began = time.monotonic()
    inputs = [{"text": str(i), "n": 1, "delay_s": 3.0} for i in range(8)]
    submitted = orchestrator.submit("/python/blobs", inputs)

    def only_streams_are_open():
        callbacks = balancer.metrics().sum("stepflow_lb_requests_total", status="202")
        # Beside those of the items there is the notification at the orchestrator's start.
        return callbacks == 2 * len(inputs) + 1

    harness.eventually("all callbacks are answered", only_streams_are_open, 10)
    balancer.send(signal.SIGTERM)
    assert submitted.is_running()
    run = submitted.finish(within_s=20)
    assert run.status == "completed", run.items
    assert balancer.process.wait(15) == 0
    assert time.monotonic() - began < 15


def check_not_available(response, instance):
    """The documented answer for an instance that is not there (docs/GUARANTEES.md)."""
    assert response.status == 503
    assert response.headers["retry-after"] == "5"
    assert response.headers["content-type"].startswith("application/json")
    body = response.json()
    assert body["jsonrpc"] == "2.0"
    assert isinstance(body["id"], str)
    error = body["error"]
    assert (error["code"], error["message"]) == (-32302, "Instance not available")
    assert error["data"]["instanceId"] == instance
    assert isinstance(error["data"]["reason"], str) and error["data"]["reason"]
