"""A session with the Python SDK of either generation, for tests that hold many of them."""

import contextlib
import json

from servers import IS_MODERN

if IS_MODERN:
    from mcp.client.client import Client
    from mcp.client.session import ClientSession
    from mcp.client.streamable_http import streamable_http_client

    streams_to = streamable_http_client
else:
    from mcp import ClientSession
    from mcp.client.streamable_http import streamablehttp_client as streams_to


class Session:
    """One session of a client."""

    def __init__(self, session):
        self._session = session

    async def call(self, tool, **arguments):
        """What a tool says, as text."""
        answer = await self._session.call_tool(tool, arguments)
        is_error = getattr(answer, "is_error", None) or getattr(answer, "isError", False)
        assert not is_error, answer
        return answer.content[0].text

    async def remember(self, text):
        """The instance that keeps the note."""
        return await self.call("remember", text=text)

    async def recall(self):
        return json.loads(await self.call("recall"))


@contextlib.asynccontextmanager
async def session(url):
    """With the handshake of the revisions up to 2025-11-25: `initialize`, then a session id."""
    if IS_MODERN:
        async with Client(url, mode="legacy") as client:
            yield Session(client)
    else:
        async with streams_to(url) as streams, ClientSession(*streams[:2]) as session:
            await session.initialize()
            yield Session(session)


@contextlib.asynccontextmanager
async def modern_client(url):
    """Without a session, as from 2026-07-28 on."""
    async with Client(url, mode="2026-07-28") as client:
        yield Session(client)
