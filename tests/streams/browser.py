"""Chromium without a window, told what to do through its DevTools protocol.

Owns the process, its profile and one WebSocket for each tab. Knows no test.
"""

import contextlib
import itertools
import json
import shutil

import lab
from websockets.sync.client import connect

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "google-chrome"))), None)

FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--no-first-run",
    # It talks to nobody but the balancer.
    "--no-proxy-server",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.*",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    # A tab that nobody looks at is as quick as another.
    "--disable-background-timer-throttling",
    "--disable-backgrounding-occluded-windows",
    "--disable-renderer-backgrounding",
]

# `EventSource.readyState`.
CONNECTING, CLOSED = 0, 2

# What Chromium waits before it comes back, unless the stream has said something else.
DEFAULT_RETRY_MS = 3000
# How late a page may hear of the end of its stream.
LATE_MS = 200

# What a page may take to notice what has been sent to it.
NOTICE_S = 30.0


def heeds(waited_ms, retry_ms):
    """Whether a browser that waited so long has heeded that `retry`, and not its own default."""
    return retry_ms - LATE_MS <= waited_ms < DEFAULT_RETRY_MS


class Browser(lab.Process):
    """A browser with a profile of its own."""

    def __init__(self, name, directory):
        self._profile = directory / f"{name}-profile"
        argv = [CHROMIUM, *FLAGS, f"--user-data-dir={self._profile}", "--remote-debugging-port=0"]
        super().__init__(name, [*argv, "about:blank"], directory, env=lab.clean_environment())

    def wait_ready(self):
        """Waits until it says on which port it can be told what to do."""
        announcement = self._profile / "DevToolsActivePort"

        def port():
            lines = announcement.read_text().splitlines() if announcement.exists() else []
            return int(lines[0]) if len(lines) == 2 else None

        self._devtools = ("127.0.0.1", self.wait_until("it listens for DevTools", port))
        return self

    def command(self, method, path):
        response = lab.request(self._devtools, method, path)
        assert response.status == 200, response.body
        return response

    def tab(self, url):
        """A tab in which this page has been loaded."""
        return Tab(self, self.command("PUT", "/json/new?about:blank").json(), url)


class Tab:
    """A tab with `page.html` in it."""

    def __init__(self, browser, description, url):
        self._browser, self._id = browser, description["id"]
        self._serial = itertools.count(1)
        self._is_open = True
        self._entered = contextlib.ExitStack()
        # Nothing that is reported while nobody asks may hold up what comes behind it.
        unbounded = {"max_size": None, "max_queue": None}
        self._socket = self._entered.enter_context(
            connect(description["webSocketDebuggerUrl"], proxy=None, **unbounded)
        )
        # Of everything that it has loaded, in octets without the framing of HTTP.
        self.octets_received = 0
        self._call("Network.enable")
        self._call("Page.enable")
        self._call("Page.navigate", url=url)
        while self._receive().get("method") != "Page.loadEventFired":
            pass

    def evaluate(self, expression):
        """What an expression of JavaScript comes to, once its promise is kept."""
        answer = self._call(
            "Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True
        )
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def listen(self, path="/events", names=()):
        """Opens an `EventSource`."""
        self.evaluate(f"listen({json.dumps(path)}, {json.dumps(list(names))})")

    def next(self):
        """The next thing that the source notices."""
        return self.evaluate("next()")

    def next_event(self):
        noted = self.next()
        assert noted["kind"] == "event", noted
        return noted

    def expect(self, kind):
        noted = self.next()
        assert noted["kind"] == kind, noted
        return noted

    def expect_return(self):
        """The stream has ended and the source comes back by itself: how long it waited, in ms."""
        left = self.expect("error")
        assert left["state"] == CONNECTING, left
        return self.expect("open")["at"] - left["at"]

    def wait_until_received(self, octets):
        """Waits until so many octets have come, whatever the source makes of them."""
        while self.octets_received < octets:
            self._receive()

    def close(self):
        """Closes it as its user does, unless that was done before."""
        if self._is_open:
            self._is_open = False
            self._browser.command("GET", f"/json/close/{self._id}")
            self._entered.close()

    def _call(self, method, **params):
        number = next(self._serial)
        self._socket.send(json.dumps({"id": number, "method": method, "params": params}))
        while True:
            message = self._receive()
            if message.get("id") == number:
                assert "error" not in message, message
                return message["result"]

    def _receive(self):
        try:
            message = json.loads(self._socket.recv(timeout=NOTICE_S))
        except TimeoutError:
            raise lab.Deadline(f"the page noticed nothing within {NOTICE_S} s") from None
        if message.get("method") == "Network.dataReceived":
            self.octets_received += message["params"]["dataLength"]
        return message
