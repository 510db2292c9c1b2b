"""`curl -N` and Node's `fetch`: event streams without an `EventSource`.

No clock decides here: the backend sends an event when its reader has said the one before.
"""

import json
import shutil
from pathlib import Path

import pytest
from backend import event

READER = Path(__file__).resolve().parent / "reader.mjs"

# How curl ends when a response does: with its last chunk, or in the middle.
CURL_ENDS = {"end": 0, "cut": 18, "reset": 18}
# And what `fetch` says.
FETCH_ENDS = {
    "end": {"ended": "whole"},
    "cut": {"ended": "TypeError", "cause": "UND_ERR_SOCKET"},
    "reset": {"ended": "TypeError", "cause": "UND_ERR_SOCKET"},
}


def open_with(lab, *argv):
    """A backend, a client of it through the balancer, and the stream between them."""
    backend = lab.backend()
    url = f"{lab.balancer([backend]).url}/events"
    client = lab.client(*argv[:-1], *[url if each == "URL" else each for each in argv[-1]])
    return client, backend.next().begin()


def curl(lab):
    return open_with(lab, shutil.which("curl"), ["--no-progress-meter", "-N", "URL"])


def fetch(lab, *leaving):
    return open_with(lab, shutil.which("node"), READER, ["URL", *leaving])


def said(client):
    """What the reader of `fetch` has said so far."""
    return [json.loads(line) for line in client.log().splitlines()]


def wait_until_said(client, what):
    client.wait_until(f"it said {what}", lambda: said(client)[-1:] == [what])


@pytest.mark.every_driver
@pytest.mark.curl
@pytest.mark.parametrize("ending", CURL_ENDS)
def test_curl_shows_each_event_before_the_next_one_is_sent_and_knows_an_end_from_a_cut(lab, ending):
    client, stream = curl(lab)
    expected = ""
    for n in range(20):
        stream.send(event(f"{n} é語🌊", n))
        expected += f"id: {n}\ndata: {n} é語🌊\n\n"
        client.wait_until(f"it shows event {n}", lambda: client.log() == expected)
    getattr(stream, ending)()
    assert client.process.wait(30) == CURL_ENDS[ending]


@pytest.mark.every_driver
@pytest.mark.curl
def test_a_curl_that_is_killed_ends_its_silent_stream_at_the_backend(lab):
    client, stream = curl(lab)
    stream.send(event("one"))
    client.wait_until("it shows the event", lambda: "data: one" in client.log())
    client.kill()
    stream.wait_until_left()


@pytest.mark.every_driver
@pytest.mark.node
@pytest.mark.parametrize("ending", FETCH_ENDS)
def test_fetch_reads_each_event_before_the_next_one_is_sent_and_knows_an_end_from_a_cut(
    lab, ending
):
    client, stream = fetch(lab)
    wait_until_said(client, {"status": 200, "type": "text/event-stream"})
    for n in range(20):
        stream.send_octet_by_octet(event(f"{n} é語🌊"))
        wait_until_said(client, {"event": f"data: {n} é語🌊"})
    getattr(stream, ending)()
    assert client.process.wait(30) == 0
    assert said(client)[-1] == FETCH_ENDS[ending]


@pytest.mark.every_driver
@pytest.mark.node
@pytest.mark.parametrize("manner", ["cancel", "abort"])
def test_a_fetch_that_is_given_up_ends_its_silent_stream_at_the_backend(lab, manner):
    client, stream = fetch(lab, "1", manner)
    wait_until_said(client, {"status": 200, "type": "text/event-stream"})
    assert stream.is_open()
    stream.send(event("one"))
    stream.wait_until_left()
    assert client.is_running()
