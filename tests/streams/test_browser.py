"""A browser's `EventSource` through the balancer.

No clock decides here: the backend sends an event when the page has noticed the one before.
"""

import zlib

import lab as processes
import pytest
from backend import QUICK_RETRY, event, next_of
from browser import CLOSED, CONNECTING, heeds

pytestmark = pytest.mark.browser


# What a stream says, piece by piece, and the event that its page notices for it: name, data and id.
# https://html.spec.whatwg.org/multipage/server-sent-events.html#event-stream-interpretation
NOTICED = [
    (b"\xef\xbb\xbfdata: after a byte order mark\n\n", "message", "after a byte order mark", ""),
    (b"data: LF\n\n", "message", "LF", ""),
    (b"data: CRLF\r\n\r\n", "message", "CRLF", ""),
    (b"data: CR\r\r", "message", "CR", ""),
    (b"data: a\rdata: b\ndata: c\r\n\r\n", "message", "a\nb\nc", ""),
    (b"event: tick\ndata: named\n\n", "tick", "named", ""),
    (b"data: the name is for one event\n\n", "message", "the name is for one event", ""),
    (b"data: one\ndata\ndata:two\n\n", "message", "one\n\ntwo", ""),
    (b": a comment\n:\n\ndata: after comments\n\n", "message", "after comments", ""),
    (b"data:  a space\n\n", "message", " a space", ""),
    (b"dates: 1\n data: 2\ndata: unknown fields\n\n", "message", "unknown fields", ""),
    (b"id: 5\ndata: with an id\n\n", "message", "with an id", "5"),
    (b"data: the id stays\n\n", "message", "the id stays", "5"),
    (b"id: \x00\ndata: an id with NUL is none\n\n", "message", "an id with NUL is none", "5"),
    (b"id: \xc3\xa9\xe2\x9c\x93\ndata: any id\n\n", "message", "any id", "é✓"),
    (b"id\ndata: the empty id\n\n", "message", "the empty id", ""),
    (b"event: tick\n\ndata: no data, no event\n\n", "message", "no data, no event", ""),
    (b"data: a: b\n\n", "message", "a: b", ""),
    ("data: zwölf 語 🌊\n\n".encode(), "message", "zwölf 語 🌊", ""),
    (b"data: \xff is no text\n\n", "message", "\ufffd is no text", ""),
    (b"retry: soon\ndata: no number, no retry\n\n", "message", "no number, no retry", ""),
]


@pytest.fixture
def opened(lab, tab_of):
    """A backend, a tab, and the stream from one to the other."""
    backend = lab.backend()
    tab = tab_of(lab.balancer([backend]))
    tab.listen(names=["tick"])
    stream = backend.next().begin()
    tab.expect("open")
    return backend, tab, stream


@pytest.mark.every_driver
@pytest.mark.parametrize("pieces", ["whole", "octets"])
def test_a_browser_notices_each_event_before_the_next_one_is_sent(opened, pieces):
    _, tab, stream = opened
    send = {"whole": stream.send, "octets": stream.send_octet_by_octet}[pieces]
    for octets, name, data, identity in NOTICED:
        send(octets)
        noted = tab.next_event()
        assert (noted["name"], noted["data"], noted["id"]) == (name, data, identity), octets


def test_a_browser_reads_a_compressed_stream_event_by_event(lab, tab_of):
    backend = lab.backend()
    tab = tab_of(lab.balancer([backend]))
    tab.listen()
    request = backend.next()
    assert "gzip" in request.headers["accept-encoding"]
    stream = request.begin("Content-Encoding: gzip")
    tab.expect("open")
    gzip = zlib.compressobj(wbits=zlib.MAX_WBITS | 16)
    for n in range(5):
        stream.send(gzip.compress(event(f"{n} é語🌊")) + gzip.flush(zlib.Z_SYNC_FLUSH))
        assert tab.next_event()["data"] == f"{n} é語🌊"


def test_a_browser_gets_an_event_of_a_megabyte_whole(opened):
    _, tab, stream = opened
    # No two parts of it are alike, and many characters take several octets.
    data = "".join(f"{n:x}é語🌊" for n in range(80_000))
    stream.send(event(data))
    assert tab.next_event()["data"] == data


@pytest.mark.parametrize("retry_ms", [20, 700])
def test_a_browser_comes_back_after_the_retry_that_the_stream_named(opened, retry_ms):
    backend, tab, stream = opened
    stream.send(b"retry: %d\n\n" % retry_ms + event("ready"))
    tab.next_event()
    stream.end()
    backend.next().begin()
    waited_ms = tab.expect_return()
    assert heeds(waited_ms, retry_ms)


@pytest.mark.every_driver
@pytest.mark.parametrize("ending", ["end", "cut", "reset"])
def test_a_browser_comes_back_with_the_id_of_the_last_whole_event(opened, ending):
    backend, tab, stream = opened
    stream.send(QUICK_RETRY + event("one", "1") + event("two", "2 é語🌊"))
    assert [tab.next_event()["data"] for _ in range(2)] == ["one", "two"]
    # The event that is not whole counts for nothing, also not its id.
    stream.send(b"id: 3\ndata: thr")
    getattr(stream, ending)()
    again = backend.next()
    assert again.headers["accept"] == "text/event-stream"
    assert again.last_event_id == "2 é語🌊"
    again.begin().send(event("three", "3"))
    tab.expect_return()
    assert tab.next_event()["data"] == "three"


def test_a_browser_whose_backend_died_goes_on_at_another_one(lab, tab_of):
    backends = lab.backends(2)
    tab = tab_of(lab.balancer(backends))
    tab.listen()
    first, request = next_of(backends)
    second = backends[1 - backends.index(first)]
    stream = request.begin()
    tab.expect("open")
    stream.send(QUICK_RETRY + event("one", "1"))
    assert tab.next_event()["data"] == "one"
    first.die()
    again = second.next()
    assert again.last_event_id == "1"
    again.begin().send(event("two", "2"))
    tab.expect_return()
    assert tab.next_event()["data"] == "two"


def test_a_browser_that_is_answered_204_does_not_come_back(opened):
    backend, tab, stream = opened
    stream.send(QUICK_RETRY + event("last", "9"))
    tab.next_event()
    stream.end()
    assert tab.expect("error")["state"] == CONNECTING
    backend.next().answer(204)
    # For good: this state has no way out.
    assert tab.expect("error")["state"] == CLOSED


@pytest.mark.every_driver
@pytest.mark.parametrize("when", ["before the first event", "after an event"])
@pytest.mark.parametrize("manner", ["source", "page", "tab"])
def test_a_user_who_leaves_a_silent_stream_is_noticed_by_the_backend(opened, manner, when):
    _, tab, stream = opened
    if when == "after an event":
        stream.send(event("one"))
        tab.next_event()
    if manner == "source":
        tab.evaluate("source.close()")
    elif manner == "page":
        tab.evaluate("location.replace('about:blank')")
    else:
        tab.close()
    stream.wait_until_left()


def test_a_browser_that_is_killed_leaves_nothing_open_at_the_backend(lab):
    backend = lab.backend()
    balancer = lab.balancer([backend])
    browser = lab.browser()
    tab = browser.tab(f"{balancer.url}/page")
    tab.listen()
    stream = backend.next().begin()
    tab.expect("open")
    browser.kill()
    stream.wait_until_left()
    processes.eventually(
        "no stream is counted",
        lambda: balancer.metrics().sum("stepflow_lb_event_streams_open") == 0,
        10,
    )


def test_what_is_counted_of_streams_is_what_their_browser_noticed(lab, tab_of):
    backend = lab.backend()
    balancer = lab.balancer([backend])
    tab = tab_of(balancer)
    tab.listen()
    noticed = octets = 0
    for life, ending in enumerate(["end", "cut", "reset", "leave"]):
        stream = backend.next().begin()
        if life:
            tab.expect_return()
        else:
            tab.expect("open")
        # Blocks without data are no events, to readers and in numbers alike.
        for said in (QUICK_RETRY, b": comment\n\n", event("1", life), event("2", life)):
            stream.send(said)
            octets += len(said)
        noticed += len([tab.next_event() for _ in range(2)])
        if ending == "leave":
            tab.evaluate("source.close()")
            stream.wait_until_left()
        else:
            getattr(stream, ending)()

    def ends():
        series = balancer.metrics().series("stepflow_lb_stream_ends_total")
        return {labels["reason"]: value for labels, value in series if value > 0}

    expected = {"finished": 1, "backend_died": 2, "client_left": 1}
    processes.eventually(f"the ends are {expected}", lambda: ends() == expected, 10)
    metrics = balancer.metrics()
    assert metrics.sum("stepflow_lb_stream_events_total") == noticed
    assert metrics.sum("stepflow_lb_stream_octets_total") == octets
    assert metrics.sum("stepflow_lb_cancel_latency_ms_count") == 1
    assert metrics.sum("stepflow_lb_event_streams_open") == 0
