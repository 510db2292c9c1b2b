"""A backend that the test plays: it hears of each request and says every octet of the answer.

Owns the listener, its connections and the HTTP/1.1 on them. Health checks and the page for the
browser are answered by the way; every other request waits in `Backend.next`. Lives in the process
of the test, so that a test releases an event when its client has the one before it.
"""

import http.client
import json
import os
import queue
import secrets
import socket
import struct
import threading
import time
from pathlib import Path

import lab

PAGE = Path(__file__).resolve().parent / "page.html"

# What a stream says whose client shall not wait long before it comes back.
QUICK_RETRY = b"retry: 20\n\n"

# What a test waits for a request. Generous: the cores may be shared.
PATIENCE_S = 30.0
# What the balancer may take to tell a backend that its client has left. It takes milliseconds; this
# is less than any of its timeouts.
LEAVING_S = 3.0


# The head of an event stream.
HEAD = ("HTTP/1.1 200 OK", "Content-Type: text/event-stream", "Transfer-Encoding: chunked")


def event(data, identity=None, name=None):
    """The octets of one event."""
    lines = [] if identity is None else [f"id: {identity}"]
    lines += [] if name is None else [f"event: {name}"]
    return "\n".join([*lines, f"data: {data}", "", ""]).encode()


class Exchange:
    """A request, and what is answered to it."""

    def __init__(self, connection, method, path, headers, body):
        self._connection = connection
        self.method, self.path, self.headers, self.body = method, path, headers, body
        # Its connection may carry another request, or is gone.
        self.is_over = threading.Event()

    @property
    def last_event_id(self):
        """As octets, read as the UTF-8 that browsers send; `None` if there is none."""
        value = self.headers["last-event-id"]
        return None if value is None else value.encode("iso-8859-1").decode()

    def begin(self, *fields):
        """Sends the head of an event stream, to be followed by chunks."""
        self._connection.sendall("\r\n".join([*HEAD, *fields, "", ""]).encode())
        return self

    def send(self, octets):
        """One chunk."""
        self._connection.sendall(b"%x\r\n%b\r\n" % (len(octets), octets))

    def send_octet_by_octet(self, octets):
        """As many chunks as there are octets, and every character of several octets is cut."""
        for octet in octets:
            self.send(bytes([octet]))

    def end(self):
        """The last chunk."""
        self._connection.sendall(b"0\r\n\r\n")
        self.is_over.set()

    def answer(self, status, body=b""):
        """A whole response."""
        length = b"" if status == 204 else b"Content-Length: %d\r\n" % len(body)
        self._connection.sendall(b"HTTP/1.1 %d Answer\r\n%b\r\n%b" % (status, length, body))
        self.is_over.set()

    def cut(self):
        """Closes the connection in the middle, as the kernel does for a process that dies."""
        self._connection.shutdown(socket.SHUT_RDWR)
        self._connection.close()
        self.is_over.set()

    def reset(self):
        """The same, with a reset."""
        self._connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        # `close` would wait for the file that reads from it.
        os.close(self._connection.detach())
        self.is_over.set()

    def wait_until_left(self, within_s=LEAVING_S):
        """Waits until the other side has closed, and says how long that took."""
        began = time.monotonic()
        self._connection.settimeout(within_s)
        try:
            octets = self._connection.recv(1)
            assert not octets, f"another request instead of an end: {octets!r}"
        except ConnectionResetError:
            pass
        except TimeoutError:
            raise lab.Deadline(f"{self.path} is still open after {within_s} s") from None
        self._connection.close()
        self.is_over.set()
        return time.monotonic() - began

    def is_open(self):
        """Whether the other side has neither closed nor sent anything."""
        self._connection.setblocking(False)
        try:
            return bool(self._connection.recv(1, socket.MSG_PEEK))
        except BlockingIOError:
            return True
        except ConnectionResetError:
            return False
        finally:
            self._connection.setblocking(True)


class Backend:
    """A listener, and a thread for each of its connections."""

    def __init__(self, host, port=0):
        self.instance = f"streams-{secrets.token_hex(4)}"
        self._arrivals = queue.Queue()
        self._connections = []
        self._listener = socket.create_server((host, port), backlog=128)
        self.address = self._listener.getsockname()
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def label(self):
        return lab.joined(self.address)

    def next(self, within_s=PATIENCE_S):
        """The next request that is for the test."""
        try:
            return self._arrivals.get(timeout=within_s)
        except queue.Empty:
            raise lab.Deadline(f"no request at {self.label} within {within_s} s") from None

    def has_none(self):
        """Whether no request waits for the test."""
        return self._arrivals.empty()

    def die(self):
        """Stops listening and closes every connection, as the kernel does for a killed process."""
        for each in [self._listener, *self._connections]:
            try:
                each.shutdown(socket.SHUT_RDWR)
            except OSError:
                # Closed before.
                pass
            each.close()

    def _accept(self):
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                # The listener was closed: nobody is to come any more.
                return
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._connections.append(connection)
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection):
        try:
            with connection.makefile("rb") as reader:
                while exchange := read_request(connection, reader):
                    self._route(exchange)
                    exchange.is_over.wait()
        except OSError:
            # The test closed it, or the balancer did: whoever waits for that asks the exchange.
            return
        connection.close()

    def _route(self, exchange):
        if exchange.path == "/health":
            health = {"status": "healthy", "instanceId": self.instance}
            exchange.answer(200, json.dumps(health).encode())
        elif exchange.path == "/page":
            exchange.answer(200, PAGE.read_bytes())
        else:
            self._arrivals.put(exchange)


def read_request(connection, reader):
    """The next request, or `None` when there is none to come."""
    line = reader.readline().decode("iso-8859-1")
    if not line:
        return None
    method, path, _ = line.split()
    headers = http.client.parse_headers(reader)
    body = reader.read(int(headers["content-length"] or 0))
    return Exchange(connection, method, path, headers, body)


def next_of(backends, within_s=PATIENCE_S):
    """The next request at any of them, behind the backend that it reached."""
    asked = lab.eventually(
        "a backend is asked",
        lambda: [each for each in backends if not each.has_none()],
        within_s,
    )
    return asked[0], asked[0].next()
