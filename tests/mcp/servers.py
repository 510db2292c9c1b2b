"""MCP servers and clients as processes, on the SDK that this interpreter has and on TypeScript's."""

import importlib.metadata
import json
import os
import secrets
import shutil
import subprocess
import sys
from pathlib import Path

import lab

HERE = Path(__file__).resolve().parent
SDK_VERSION = importlib.metadata.version("mcp")
IS_MODERN = int(SDK_VERSION.split(".")[0]) >= 2
NODE = shutil.which("node")
# Where the packages of package.json are.
NODE_MODULES = Path(os.environ.get("MCP_NODE_MODULES", HERE / "node_modules"))
HAS_TYPESCRIPT = NODE is not None and (NODE_MODULES / "@modelcontextprotocol/sdk").is_dir()

# What makes the balancer keep MCP's sessions.
SESSIONS = {"STEPFLOW_LB_SESSION_HEADER": "Mcp-Session-Id"}


def new_key():
    """A key for sessions, as an operator makes one."""
    return secrets.token_hex(32)


class Server(lab.Backend):
    """An MCP server: one backend of the balancer."""

    stop_s = 2.0

    def __init__(self, name, directory, language, host, port, instance):
        program = {
            "python": [sys.executable, HERE / "server.py"],
            "typescript": [NODE, module(directory, "server.mjs")],
        }[language]
        super().__init__(name, program, directory, host, port, instance)

    def seen(self):
        """What each request to the endpoint carried, in order."""
        lines = self.log().splitlines()
        return [json.loads(line) for line in lines if line.startswith('{"request"')]


class Lab(lab.Lab):
    """MCP servers and balancers of one test."""

    def server(self, language="python", address=None, instance=None):
        serial = next(self._serial)
        host, port = address or (self._host(), 0)
        name, instance = f"server-{serial}", instance or f"mcp-{serial}-{secrets.token_hex(4)}"
        return self._add(Server(name, self.directory, language, host, port, instance))

    def servers(self, count, language="python"):
        started = [self.server(language) for _ in range(count)]
        return [server.wait_healthy() for server in started]


def module(directory, name):
    """A copy of a module of ours in a place from which it finds its packages: the repository is not
    written to. Made once, because whoever runs it reads it whenever it likes."""
    modules, copy = directory / "node_modules", directory / name
    if not modules.exists():
        modules.symlink_to(NODE_MODULES, target_is_directory=True)
    if not copy.exists():
        shutil.copy(HERE / name, copy)
    return copy


def typescript_client(directory, url, notes):
    """Opens a session with TypeScript's client, leaves notes in it, and ends it."""
    argv = [NODE, module(directory, "client.mjs"), url, str(notes)]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)
