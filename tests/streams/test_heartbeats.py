"""Comments of the balancer's in silent streams, which no reader notices."""

from concurrent.futures import ThreadPoolExecutor

import lab as processes
import pytest
from backend import PATIENCE_S, event
from test_openai import Conversation, token

QUICK = {"STEPFLOW_LB_STREAM_HEARTBEAT": "100ms"}
HEARTBEAT = b": \n\n"
# How many come before it goes on.
SILENCE = 3 * len(HEARTBEAT)


@pytest.mark.browser
def test_a_browser_notices_no_heartbeat_and_every_event_between_them(lab, tab_of):
    backend = lab.backend()
    tab = tab_of(lab.balancer([backend], **QUICK))
    tab.listen()
    stream = backend.next().begin()
    tab.expect("open")
    # Behind a heartbeat a byte order mark is no longer at the beginning, where browsers skip it.
    first = b"\xef\xbb\xbfid: 1\ndata: 1\nretry: 20\n\n"
    for number, octets in enumerate([first, b"id: 2\rdata: 2\r\r", event(3, 3)], 1):
        tab.wait_until_received(tab.octets_received + SILENCE)
        stream.send_octet_by_octet(octets)
        noted = tab.next_event()
        assert (noted["data"], noted["id"]) == (str(number), str(number))
    tab.wait_until_received(tab.octets_received + SILENCE)
    stream.end()
    # Nor does one change where the stream goes on.
    again = backend.next()
    assert again.last_event_id == "3"
    again.begin()
    tab.expect_return()


@pytest.mark.every_driver
def test_the_openai_client_notices_no_heartbeat_and_every_token_between_them(lab):
    backend = lab.backend()
    conversation = Conversation([backend], lab.balancer([backend], **QUICK))
    response = conversation.chunks.response
    with ThreadPoolExecutor(1) as pool:
        for text in ("one", "zwö", "三"):
            before = response.num_bytes_downloaded
            asking = pool.submit(conversation.next_text)
            processes.eventually(
                "some heartbeats have come",
                lambda before=before: response.num_bytes_downloaded >= before + SILENCE,
                PATIENCE_S,
            )
            assert not asking.done()
            conversation.answer.send_octet_by_octet(token(text))
            assert asking.result(PATIENCE_S) == text
    conversation.close()
