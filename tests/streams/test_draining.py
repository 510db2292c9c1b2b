"""What clients notice when a backend or the balancer drains: nothing is lost, and nothing is cut."""

import errno
import signal
import socket

import pytest
from backend import event, next_of
from browser import heeds
from test_openai import Conversation, token

RETRY_MS = 300
# A balancer that ends serves whoever connected within the second before and has asked for nothing;
# browsers keep such a connection in reserve, and would come back by it.
RETRY_ELSEWHERE_MS = 1200


def retrying(least_ms):
    """Options: how long those are to wait who are sent away."""
    return {
        "STEPFLOW_LB_STREAM_RETRY_MIN": f"{least_ms}ms",
        "STEPFLOW_LB_STREAM_RETRY_MAX": f"{least_ms + 300}ms",
    }


def drain(balancer, backend):
    """Tells the balancer to empty a backend, as an operator does."""
    response = balancer.admin("POST", f"/backends/{backend.label}/drain")
    assert response.status in (200, 202), response.body


def is_refused(address):
    """Whether nobody listens at this address."""
    with socket.socket() as one:
        return one.connect_ex(address) == errno.ECONNREFUSED


def carry(tab, stream, number):
    """Hands an event through."""
    stream.send(event(number, number))
    expect(tab, number)


def expect(tab, number):
    """The next thing that the page notices is this event."""
    noted = tab.next_event()
    assert (noted["data"], noted["id"]) == (str(number), str(number))


@pytest.mark.every_driver
@pytest.mark.browser
def test_a_browser_is_sent_from_a_draining_backend_to_another_and_loses_no_event(lab, tab_of):
    backends = lab.backends(2)
    balancer = lab.balancer(backends, **retrying(RETRY_MS))
    tab = tab_of(balancer)
    tab.listen()
    backend, request = next_of(backends)
    stream = request.begin()
    tab.expect("open")
    carry(tab, stream, 1)
    # It is in the middle of an event, which is not torn.
    stream.send(b"id: 2\nda")
    drain(balancer, backend)
    stream.send(b"ta: 2\n\n")
    expect(tab, 2)
    stream.wait_until_left()
    backends.remove(backend)
    request = backends[0].next()
    assert request.last_event_id == "2"
    stream = request.begin()
    assert heeds(tab.expect_return(), RETRY_MS)
    carry(tab, stream, 3)
    carry(tab, stream, 4)


@pytest.mark.every_driver
@pytest.mark.browser
def test_a_browser_goes_on_at_the_successor_of_a_balancer_and_loses_no_event(lab, tab_of):
    options = retrying(RETRY_ELSEWHERE_MS)
    backend = lab.backend()
    balancer = lab.balancer([backend], **options)
    tab = tab_of(balancer)
    tab.listen()
    stream = backend.next().begin()
    tab.expect("open")
    carry(tab, stream, 1)
    stream.send(b"id: 2\nda")
    balancer.send(signal.SIGTERM)
    balancer.wait_until("nobody listens any more", lambda: is_refused(balancer.address))
    successor = lab.balancer([backend], address=balancer.address, **options)
    stream.send(b"ta: 2\n\n")
    expect(tab, 2)
    stream.wait_until_left()
    request = backend.next()
    assert request.last_event_id == "2"
    stream = request.begin()
    assert heeds(tab.expect_return(), RETRY_ELSEWHERE_MS)
    carry(tab, stream, 3)
    assert balancer.process.wait(30) == 0
    assert successor.metrics().sum("stepflow_lb_event_streams_open") == 1


@pytest.mark.browser
def test_a_browser_whose_stream_is_old_comes_back_and_loses_no_event(lab, tab_of):
    backend = lab.backend()
    tab = tab_of(lab.balancer([backend], STEPFLOW_LB_STREAM_AGE_MAX="1s", **retrying(RETRY_MS)))
    tab.listen()
    number = 0
    for life in range(2):
        request = backend.next()
        assert request.last_event_id == (str(number) if life else None)
        stream = request.begin()
        if life:
            assert heeds(tab.expect_return(), RETRY_MS)
        else:
            tab.expect("open")
        number += 1
        carry(tab, stream, number)
        stream.wait_until_left()


@pytest.mark.every_driver
@pytest.mark.parametrize("who", ["backend", "balancer"])
def test_an_openai_client_gets_the_whole_answer_while_its_way_is_drained(lab, who):
    backends = lab.backends(2)
    balancer = lab.balancer(backends, **retrying(RETRY_MS))
    conversation = Conversation(backends, balancer)
    conversation.answer.send(token("before"))
    assert conversation.next_text() == "before"
    if who == "backend":
        drain(balancer, conversation.backend)
        # Others are served elsewhere.
        other = Conversation(backends, balancer)
        assert other.backend is not conversation.backend
        other.close()
    else:
        balancer.send(signal.SIGTERM)
        balancer.wait_until("it drains", lambda: "accepting_stopped" in balancer.log())
    for number in range(5):
        conversation.answer.send(token(f"behind {number}"))
        assert conversation.next_text() == f"behind {number}"
    conversation.answer.send(token(None, "stop") + b"data: [DONE]\n\n")
    conversation.answer.end()
    assert [chunk.choices[0].finish_reason for chunk in conversation.chunks] == ["stop"]
    if who == "balancer":
        assert balancer.process.wait(30) == 0
    conversation.close()
