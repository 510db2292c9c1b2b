"""h11 as a reader of messages: the parser of uvicorn and httpx.

The protocol is that of llhttp_reader.js: cases on standard input, a line for each on standard
output.
"""

import json
import sys

import h11

# The cases are small; what this side refuses for its size would only hide what it reads.
EVENT_BYTES_MAX = 1 << 20


def server(_method: str) -> h11.Connection:
    return h11.Connection(h11.SERVER, max_incomplete_event_size=EVENT_BYTES_MAX)


def client(method: str) -> h11.Connection:
    connection = h11.Connection(h11.CLIENT, max_incomplete_event_size=EVENT_BYTES_MAX)
    connection.send(h11.Request(method=method, target="/", headers=[("Host", "a")]))
    connection.send(h11.EndOfMessage())
    return connection


def read(kind: str, octets: bytes) -> dict:
    connection = (server if kind == "request" else client)(kind)
    connection.receive_data(octets)
    head, content, is_over = None, b"", False
    while True:
        try:
            event = connection.next_event()
        except h11.RemoteProtocolError as error:
            # Behind the end, it complains about what is missing.
            return {"unfinished": True} if is_over else {"refused": str(error)}
        if event is h11.NEED_DATA and not is_over:
            connection.receive_data(b"")
            is_over = True
        elif isinstance(event, (h11.Request, h11.Response)):
            head = event
        elif isinstance(event, h11.Data):
            content += bytes(event.data)
        elif isinstance(event, h11.EndOfMessage):
            left, _ = connection.trailing_data
            return {"whole": written(head, content, len(octets) - len(left))}
        elif not isinstance(event, h11.InformationalResponse):
            return {"unfinished": True}


def written(head: h11.Request | h11.Response, content: bytes, end: int) -> dict:
    if isinstance(head, h11.Request):
        start = [text(head.method), text(head.target)]
    else:
        start = head.status_code
    fields = [[text(name), text(value)] for name, value in head.headers]
    return {"start": start, "fields": fields, "content": text(content), "end": end}


def text(octets: bytes) -> str:
    return bytes(octets).decode("latin-1")


def main() -> None:
    while line := sys.stdin.buffer.readline():
        kind, length = line.decode("ascii").split()
        octets = sys.stdin.buffer.read(int(length))
        print(json.dumps({"h11": read(kind, octets)}), flush=True)


main()
