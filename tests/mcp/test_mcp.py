"""MCP's sessions through the balancer, with the real SDKs on both sides and three replicas behind.

Whatever a client left in its session must be there when it asks: a request that reaches another
replica would find nothing, or be told 404.
"""

import asyncio
import json
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import clients
import lab as processes
import pytest
import servers

SESSIONS = 12
NOTES = 5

LANGUAGES = ["python", pytest.param("typescript", marks=pytest.mark.typescript)]

INITIALIZE = {
    "jsonrpc": "2.0",
    "id": 1,
    "method": "initialize",
    "params": {
        "protocolVersion": "2025-11-25",
        "capabilities": {},
        "clientInfo": {"name": "raw", "version": "1"},
    },
}
HEADERS = {
    "content-type": "application/json",
    "accept": "application/json, text/event-stream",
    "mcp-protocol-version": "2025-11-25",
}


def post(address, body, session=None):
    headers = HEADERS if session is None else {**HEADERS, "mcp-session-id": session}
    return processes.request(address, "POST", "/mcp", body, headers)


def call(address, session, tool, **arguments):
    """Calls a tool without an SDK. The answer may come as an event stream of one event."""
    params = {"name": tool, "arguments": arguments}
    body = {"jsonrpc": "2.0", "id": 2, "method": "tools/call", "params": params}
    response = post(address, body, session)
    if response.status != 200:
        return response.status, response.json()
    data = [line[5:] for line in response.body.decode().splitlines() if line.startswith("data:")]
    message = json.loads([text for text in data if text.strip()][-1]) if data else response.json()
    return response.status, message["result"]["content"][0]["text"]


def open_session(address):
    """A session's token, as the client sees it."""
    response = post(address, INITIALIZE)
    assert response.status == 200, response.body
    session = response.headers["mcp-session-id"]
    told = {"jsonrpc": "2.0", "method": "notifications/initialized"}
    assert post(address, told, session).status == 202
    return session


@pytest.mark.parametrize("language", LANGUAGES)
def test_python_clients_find_in_their_sessions_what_they_left_there(lab, language):
    replicas = lab.servers(3, language)
    balancer = lab.balancer(replicas, **servers.SESSIONS)
    url = f"{balancer.url}/mcp"

    # Nobody leaves before all have come, so that the number of sessions decides where they go.
    everybody = asyncio.Barrier(SESSIONS)

    async def visit(number):
        async with clients.session(url) as session:
            await everybody.wait()
            notes = [f"{number}.{n}" for n in range(NOTES)]
            keepers = {await session.remember(note) for note in notes}
            recalled = await session.recall()
            assert keepers == {recalled["instance"]}
            assert recalled["notes"] == notes
            return recalled["instance"]

    async def visits():
        return await asyncio.gather(*(visit(number) for number in range(SESSIONS)))

    spread = Counter(asyncio.run(visits()))
    # New sessions go where the fewest are.
    assert spread == {replica.instance: SESSIONS // 3 for replica in replicas}
    # Every request of a session, GET and DELETE included, was at one replica; and what backends saw
    # are their own ids.
    places = {}
    methods = Counter()
    for replica in replicas:
        for request in replica.seen():
            methods[request["request"]] += 1
            if "mcp-session-id" in request:
                places.setdefault(request["mcp-session-id"], set()).add(replica.instance)
                assert len(request["mcp-session-id"]) < 40
    assert len(places) == SESSIONS
    assert all(len(instances) == 1 for instances in places.values()), places
    assert methods["DELETE"] == SESSIONS
    assert methods["GET"] == SESSIONS
    ended = "stepflow_lb_sessions_ended_total"
    processes.eventually(
        "all sessions have ended", lambda: balancer.metrics().sum(ended) == SESSIONS, 10
    )
    assert balancer.metrics().sum("stepflow_lb_sessions_live") == 0


@pytest.mark.typescript
@pytest.mark.parametrize("language", ["python", "typescript"])
def test_typescript_clients_find_in_their_sessions_what_they_left_there(lab, language):
    replicas = lab.servers(3, language)
    balancer = lab.balancer(replicas, **servers.SESSIONS)

    def visit(_):
        return servers.typescript_client(lab.directory, f"{balancer.url}/mcp", NOTES)

    servers.module(lab.directory, "client.mjs")
    with ThreadPoolExecutor(3) as pool:
        visits = list(pool.map(visit, range(6)))
    for visited in visits:
        assert visited["keepers"] == [visited["recalled"]["instance"]]
        assert visited["recalled"]["notes"] == [f"note {n}" for n in range(NOTES)]
    # They come one after the other, so that chance decides where each goes.
    assert {v["keepers"][0] for v in visits} <= {replica.instance for replica in replicas}
    # What the client holds is no backend's id.
    ids = {r.get("mcp-session-id") for replica in replicas for r in replica.seen()}
    assert not ids & {visited["session"] for visited in visits}


def test_sessions_go_on_through_another_replica_of_the_balancer_and_after_a_restart(lab):
    replicas = lab.servers(3)
    options = {**servers.SESSIONS, "STEPFLOW_LB_SESSION_KEYS": servers.new_key()}
    one, two = (lab.balancer(replicas, **options) for _ in range(2))
    sessions = [open_session(one.address) for _ in range(6)]
    keepers = [call(one.address, s, "remember", text=f"of {s}") for s in sessions]
    for session, (status, keeper) in zip(sessions, keepers, strict=True):
        assert status == 200
        assert call(two.address, session, "remember", text="two") == (200, keeper)
    one.kill()
    third = lab.balancer(replicas, **options)
    for session, (_, keeper) in zip(sessions, keepers, strict=True):
        status, recalled = call(third.address, session, "recall")
        assert (status, json.loads(recalled)["instance"]) == (200, keeper)
        assert json.loads(recalled)["notes"] == [f"of {session}", "two"]


def test_a_session_whose_replica_is_gone_is_answered_404_so_that_clients_begin_anew(lab):
    replicas = lab.servers(2)
    quick = {"HEALTH_CHECK_INTERVAL": "200ms", "STEPFLOW_LB_INSTANCE_RETRY": "300ms"}
    balancer = lab.balancer(replicas, **servers.SESSIONS, **quick)
    session = open_session(balancer.address)
    _, keeper = call(balancer.address, session, "whoami")
    lost = next(replica for replica in replicas if replica.instance == keeper)
    address = lost.address
    lost.kill()
    # While it only refuses connections it may come back: the client is told to try again.
    status, _ = call(balancer.address, session, "whoami")
    assert status == 503
    # Another process at its address is another instance: what the session held is lost.
    lab.server(address=address).wait_healthy()
    balancer.wait_for_backends(2)

    def is_lost():
        status, message = call(balancer.address, session, "whoami")
        return status == 404 and message["error"]["code"] == -32001

    processes.eventually("the session is lost", is_lost, 10)
    fresh = open_session(balancer.address)
    assert call(balancer.address, fresh, "whoami")[0] == 200


def test_a_token_that_was_not_made_here_reaches_nobody(lab):
    replicas = lab.servers(1)
    balancer = lab.balancer(replicas, **servers.SESSIONS)
    session = open_session(balancer.address)
    seen = len(replicas[0].seen())
    forged = session[:-1] + ("A" if session[-1] != "A" else "B")
    for token in (forged, "0123456789abcdef0123456789abcdef"):
        assert call(balancer.address, token, "whoami")[0] == 404
    assert len(replicas[0].seen()) == seen


@pytest.mark.modern
def test_from_july_2026_on_any_replica_serves_and_nothing_is_added(lab):
    replicas = lab.servers(3)
    balancer = lab.balancer(replicas, **servers.SESSIONS)

    async def visit():
        async with clients.modern_client(f"{balancer.url}/mcp") as client:
            return [await client.call("whoami") for _ in range(30)]

    served = Counter(asyncio.run(visit()))
    assert set(served) == {replica.instance for replica in replicas}
    for replica in replicas:
        calls = [r for r in replica.seen() if r.get("mcp-method") == "tools/call"]
        assert len(calls) == served[replica.instance]
        assert all(r["mcp-name"] == "whoami" and "mcp-session-id" not in r for r in calls)
    assert balancer.metrics().sum("stepflow_lb_sessions_opened_total") == 0


@pytest.mark.modern
def test_requests_for_one_tool_stay_together_when_hashed_on_its_name(lab):
    replicas = lab.servers(3)
    hashed = {"STEPFLOW_LB_ALGORITHM": "consistent_hash", "STEPFLOW_LB_HASH_ON": "header:Mcp-Name"}
    balancer = lab.balancer(replicas, **servers.SESSIONS, **hashed)

    async def visit():
        async with clients.modern_client(f"{balancer.url}/mcp") as client:
            return {await client.call("whoami") for _ in range(20)}

    assert len(asyncio.run(visit())) == 1
