"""An MCP server for the tests, with state in each session: one backend of the balancer.

    server.py HOST PORT INSTANCE

Runs on the Python SDK of either generation. What a session was told lives in this process alone, so
a request that reaches another replica is noticed. Says on standard output which port it got, and
what each request carried.
"""

import json
import sys

import uvicorn

try:
    from mcp.server.mcpserver import Context, MCPServer

    GENERATION = 2
except ImportError:
    from mcp.server.fastmcp import Context
    from mcp.server.fastmcp import FastMCP as MCPServer

    GENERATION = 1
from mcp.server.transport_security import TransportSecuritySettings
from starlette.responses import JSONResponse

HOST, PORT, INSTANCE = sys.argv[1], int(sys.argv[2]), sys.argv[3]
SECURITY = TransportSecuritySettings(enable_dns_rebinding_protection=False)

if GENERATION == 2:
    server = MCPServer("stateful")
else:
    server = MCPServer("stateful", transport_security=SECURITY)

# What each session was told, by its id.
notes = {}


def session_of(ctx):
    """The id of the session, as this server gave it; `None` without one."""
    headers = ctx.headers if GENERATION == 2 else ctx.request_context.request.headers
    return headers.get("mcp-session-id")


@server.tool()
async def remember(text: str, ctx: Context) -> str:
    """Keeps a note in this session, and says who keeps it."""
    notes.setdefault(session_of(ctx), []).append(text)
    return INSTANCE


@server.tool()
async def recall(ctx: Context) -> str:
    """Everything that this session was told, and by whom it was kept."""
    return json.dumps({"instance": INSTANCE, "notes": notes.get(session_of(ctx), [])})


@server.tool()
async def whoami() -> str:
    """The instance that answers."""
    return INSTANCE


@server.tool()
async def count(to: int, ctx: Context) -> str:
    """Reports progress on the way: an answer that is a stream."""
    for step in range(to):
        await ctx.report_progress(step + 1, to)
    return INSTANCE


@server.custom_route("/health", methods=["GET"])
async def health(request):
    return JSONResponse({"status": "healthy", "instanceId": INSTANCE})


class Witness:
    """Writes down what each request to the endpoint carries."""

    def __init__(self, app):
        self.app = app

    async def __call__(self, scope, receive, send):
        if scope["type"] == "http" and scope["path"] == "/mcp":
            headers = {k.decode(): v.decode("latin-1") for k, v in scope["headers"]}
            wanted = ("mcp-session-id", "mcp-protocol-version", "mcp-method", "mcp-name")
            seen = {name: headers[name] for name in wanted if name in headers}
            print(json.dumps({"request": scope["method"], **seen}), flush=True)
        await self.app(scope, receive, send)


class Announcing(uvicorn.Server):
    """Says which port it got once it can be reached."""

    async def startup(self, sockets=None):
        await super().startup(sockets)
        port = self.servers[0].sockets[0].getsockname()[1]
        print(json.dumps({"port": port}), flush=True)


def main():
    if GENERATION == 2:
        app = server.streamable_http_app(transport_security=SECURITY)
    else:
        app = server.streamable_http_app()
    config = uvicorn.Config(
        Witness(app), host=HOST, port=PORT, log_level="warning", timeout_graceful_shutdown=1
    )
    Announcing(config).run()


main()
