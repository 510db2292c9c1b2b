"""Streams that outlive their backend, as a browser sees it: not at all."""

import pytest
from backend import QUICK_RETRY, event, next_of

pytestmark = pytest.mark.browser

RESUME = {"STEPFLOW_LB_STREAM_RESUME": "on"}

# What a stream has said when its backend dies, and the id from which it is to go on: the one that a
# browser would send. A block that is not whole counts for nothing.
# https://html.spec.whatwg.org/multipage/server-sent-events.html#event-stream-interpretation
LAST_IDS = {
    "one": (b"id: 1\ndata: a\n\n", "1"),
    "the last of two": (b"id: 1\ndata: a\n\nid: 2\ndata: b\n\n", "2"),
    "the last of a block": (b"id: 1\nid: 2\ndata: a\n\n", "2"),
    "that of an earlier event": (b"id: 1\ndata: a\n\ndata: b\n\n", "1"),
    "that of a block without data": (b"id: 1\ndata: a\n\nid: 2\n\n", "2"),
    "not that of a block that is not whole": (b"id: 1\ndata: a\n\nid: 2\ndata: b\n", "1"),
    "not one with NUL": (b"id: 1\ndata: a\n\nid: 2\0\ndata: b\n\n", "1"),
    "not one in capitals": (b"id: 1\ndata: a\n\nID: 2\ndata: b\n\n", "1"),
    "behind a byte order mark": (b"\xef\xbb\xbfid: 1\ndata: a\n\n", "1"),
    "without a space": (b"id:1\rdata:a\r\r", "1"),
    "with spaces and a colon": (b"id: a : b\r\ndata: a\r\n\r\n", "a : b"),
    "any text": ("id: 2 é語🌊\ndata: a\n\n".encode(), "2 é語🌊"),
}


def open_stream(tab, backends):
    """Opens an `EventSource`: the backend that has its stream, and the stream."""
    tab.listen()
    backend, request = next_of(backends)
    stream = request.begin()
    tab.expect("open")
    return backend, stream


@pytest.mark.every_driver
def test_a_browser_whose_backend_dies_before_the_first_event_notices_nothing(lab, tab_of):
    backends = lab.backends(2)
    tab = tab_of(lab.balancer(backends))
    backend, _ = open_stream(tab, backends)
    backend.die()
    backends.remove(backend)
    request = backends[0].next()
    assert request.last_event_id is None
    request.begin().send(event("one"))
    assert tab.next_event()["data"] == "one"


@pytest.mark.every_driver
def test_a_browser_whose_stream_is_resumed_notices_nothing_of_two_deaths(lab, tab_of):
    backends = lab.backends(3)
    balancer = lab.balancer(backends, **RESUME)
    tab = tab_of(balancer)
    backend, stream = open_stream(tab, backends)
    number = 0
    while True:
        for _ in range(3):
            number += 1
            stream.send_octet_by_octet(event(f"{number} é語🌊", number))
            noted = tab.next_event()
            assert (noted["data"], noted["id"]) == (f"{number} é語🌊", str(number))
        backends.remove(backend)
        if not backends:
            break
        # It dies inside an event, which another one then sends from its beginning.
        stream.send(event(f"{number + 1} é語🌊", number + 1)[:-5])
        backend.die()
        backend, request = next_of(backends)
        assert request.last_event_id == str(number)
        stream = request.begin()
    assert balancer.metrics().sum("stepflow_lb_streams_continued_total") == 2


def test_a_resumed_stream_goes_on_from_the_id_that_the_browser_would_have_sent(lab, tab_of):
    backends = lab.backends(2)
    balancer = lab.balancer(backends, **RESUME)
    tab = tab_of(balancer)
    for number, (case, (said, identity)) in enumerate(LAST_IDS.items()):
        _, stream = open_stream(tab, backends)
        stream.send(said)
        stream.cut()
        _, request = next_of(backends)
        assert request.last_event_id == identity, f"the balancer: {case}"
        # Now it is the browser that asks.
        stream = request.begin()
        stream.send(QUICK_RETRY)
        stream.end()
        _, request = next_of(backends)
        assert request.last_event_id == identity, f"the browser: {case}"
        assert balancer.metrics().sum("stepflow_lb_streams_continued_total") == number + 1
        request.answer(204)
