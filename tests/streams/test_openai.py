"""OpenAI's Python client through the balancer, streaming from a server of tokens.

No clock decides here: the server sends a token when the client has the one before.
"""

import asyncio
import json
from concurrent.futures import ThreadPoolExecutor

import httpx2
import lab as processes
import openai
import pytest
from backend import PATIENCE_S, next_of

TOKENS = ["Ein", " gro", "ßes", " 語", "🌊", " e\u0301", "\n\n", " data: [DONE]", " – Ende"]
MESSAGES = [{"role": "user", "content": "Größe? 🌊"}]
QUESTION = {"model": "played", "messages": MESSAGES, "stream": True}


def token(text, finish=None):
    """The event that carries a token."""
    delta = {} if text is None else {"content": text}
    chunk = {
        "id": "chatcmpl-1",
        "object": "chat.completion.chunk",
        "created": 1,
        "model": "played",
        "choices": [{"index": 0, "delta": delta, "finish_reason": finish}],
    }
    return f"data: {json.dumps(chunk, ensure_ascii=False)}\n\n".encode()


def text_of(chunk):
    return chunk.choices[0].delta.content


class Conversation:
    """A client that has asked, and the server's side of the answer."""

    def __init__(self, backends, balancer):
        self.balancer = balancer
        self._client = openai.OpenAI(
            base_url=f"{balancer.url}/v1", api_key="none", max_retries=0, timeout=PATIENCE_S
        )
        # The client waits for the head of the answer, which is ours to send.
        with ThreadPoolExecutor(1) as pool:
            asking = pool.submit(self._client.chat.completions.create, **QUESTION)
            self.backend, self.request = next_of(backends)
            self.answer = self.request.begin()
            self.chunks = asking.result(PATIENCE_S)

    def next_text(self):
        return text_of(next(self.chunks))

    def metrics_with(self, name, **labels):
        """What the balancer has counted, once this is not nothing."""
        metrics = self.balancer.metrics()
        return metrics if metrics.sum(name, **labels) > 0 else None

    def close(self):
        self._client.close()


@pytest.fixture
def conversation(lab):
    backend = lab.backend()
    conversation = Conversation([backend], lab.balancer([backend]))
    yield conversation
    conversation.close()


@pytest.mark.every_driver
@pytest.mark.parametrize("pieces", ["whole", "octets"])
def test_the_openai_client_gets_each_token_before_the_next_one_is_sent(conversation, pieces):
    request, answer = conversation.request, conversation.answer
    assert (request.method, request.path) == ("POST", "/v1/chat/completions")
    assert json.loads(request.body) == QUESTION
    send = {"whole": answer.send, "octets": answer.send_octet_by_octet}[pieces]
    for text in TOKENS:
        send(token(text))
        assert conversation.next_text() == text
    send(token(None, "stop"))
    assert next(conversation.chunks).choices[0].finish_reason == "stop"
    send(b"data: [DONE]\n\n")
    answer.end()
    assert next(conversation.chunks, "the end") == "the end"


def test_an_openai_client_that_leaves_behind_the_last_token_is_no_failure(conversation):
    conversation.answer.send(token("all", "stop") + b"data: [DONE]\n\n")
    assert conversation.next_text() == "all"
    # It does not wait for the last chunk, which never comes.
    assert next(conversation.chunks, "the end") == "the end"
    conversation.answer.wait_until_left()
    counted = {"method": "POST", "status": "200"}
    metrics = processes.eventually(
        "the request is counted",
        lambda: conversation.metrics_with("stepflow_lb_requests_total", **counted),
        10,
    )
    assert metrics.sum("stepflow_lb_failures_total") == 0
    assert metrics.sum("stepflow_lb_event_streams_open") == 0


@pytest.mark.every_driver
@pytest.mark.parametrize("when", ["before the first token", "after a token"])
def test_an_openai_client_that_stops_early_frees_its_server(conversation, when):
    if when == "after a token":
        conversation.answer.send(token("one"))
        assert conversation.next_text() == "one"
    assert conversation.answer.is_open()
    conversation.chunks.close()
    conversation.answer.wait_until_left()


@pytest.mark.every_driver
def test_an_openai_client_that_is_cancelled_frees_its_server(lab):
    backend = lab.backend()
    balancer = lab.balancer([backend])
    asked, read = asyncio.Event(), asyncio.Event()

    async def converse(url):
        async with openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=0) as client:
            chunks = await client.chat.completions.create(**QUESTION)
            asked.set()
            async for chunk in chunks:
                assert text_of(chunk) == "one"
                read.set()

    async def change_ones_mind():
        conversation = asyncio.create_task(converse(f"{balancer.url}/v1"))
        answer = (await asyncio.to_thread(backend.next)).begin()
        await asked.wait()
        answer.send(token("one"))
        await read.wait()
        assert answer.is_open()
        conversation.cancel()
        await asyncio.to_thread(answer.wait_until_left)

    asyncio.run(asyncio.wait_for(change_ones_mind(), PATIENCE_S))


@pytest.mark.every_driver
@pytest.mark.parametrize("ending", ["cut", "reset"])
def test_an_answer_that_was_cut_is_an_error_to_the_openai_client(lab, ending):
    backends = lab.backends(2)
    conversation = Conversation(backends, lab.balancer(backends, STEPFLOW_LB_STREAM_RESUME="on"))
    conversation.answer.send(b"id: 1\n" + token("one"))
    assert conversation.next_text() == "one"
    getattr(conversation.answer, ending)()
    with pytest.raises((httpx2.TransportError, openai.APIError)):
        conversation.next_text()
    # It was asked once: whoever answers does so anew, and at a cost.
    assert all(backend.has_none() for backend in backends)
    conversation.close()
