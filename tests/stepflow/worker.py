"""A Stepflow component server, made with the real SDK, whose components the tests call.

    worker.py HOST PORT INSTANCE_ID

Port 0 takes a free one; the SDK prints `{"port": N}` once it listens. Every component prints a line
`{"begin": NAME, "text": TEXT}` before it does anything, so that a test can tell which worker had
which item without asking the balancer.
"""

import asyncio
import json
import sys
import time

import msgspec
from stepflow_py.worker import StepflowContext, StepflowServer

HOST, PORT, INSTANCE = sys.argv[1], int(sys.argv[2]), sys.argv[3]
server = StepflowServer()


class In(msgspec.Struct):
    text: str = ""
    # How many callbacks.
    n: int = 1
    delay_s: float = 0.0
    flow_id: str = ""


class Out(msgspec.Struct):
    instance: str
    text: str
    blobs: list[str] = []
    nested: str = ""


def begin(name: str, given: In) -> None:
    print(json.dumps({"begin": name, "text": given.text}), flush=True)


@server.component(name="echo")
def echo(input: In) -> Out:
    begin("echo", input)
    return Out(instance=INSTANCE, text=input.text)


@server.component(name="fail")
def fail(input: In) -> Out:
    begin("fail", input)
    raise ValueError(f"refused {input.text}")


@server.component(name="blobs")
async def blobs(input: In, context: StepflowContext) -> Out:
    """Two callbacks a round, one after the other; what comes back must be what was put."""
    begin("blobs", input)
    ids = []
    for i in range(input.n):
        put = {"i": i, "text": input.text, "instance": INSTANCE}
        blob_id = await context.put_blob(put)
        got = await context.get_blob(blob_id)
        if got != put:
            raise ValueError(f"put {put!r}, got {got!r}")
        ids.append(blob_id)
        await asyncio.sleep(input.delay_s)
    return Out(instance=INSTANCE, text=input.text, blobs=ids)


@server.component(name="fanout")
async def fanout(input: In, context: StepflowContext) -> Out:
    """All callbacks at once: their answers come back in any order and on any connection."""
    begin("fanout", input)
    puts = [context.put_blob({"i": i, "text": input.text, "by": INSTANCE}) for i in range(input.n)]
    return Out(instance=INSTANCE, text=input.text, blobs=await asyncio.gather(*puts))


@server.component(name="busy")
async def busy(input: In, context: StepflowContext) -> Out:
    """Blocks the event loop between two callbacks, as a computation on the CPU does.

    Nothing is answered meanwhile, health checks included.
    """
    begin("busy", input)
    before = await context.put_blob({"before": INSTANCE})
    # Time for the event loop to flush what it has before it stops.
    await asyncio.sleep(0.1)
    time.sleep(input.delay_s)
    after = await context.put_blob({"after": INSTANCE})
    return Out(instance=INSTANCE, text=input.text, blobs=[before, after])


@server.component(name="subflow")
async def subflow(input: In, context: StepflowContext) -> Out:
    """Runs another flow through the orchestrator, which calls a worker again for it."""
    begin("subflow", input)
    result = await context.evaluate_flow_by_id(input.flow_id, {"text": input.text})
    return Out(instance=INSTANCE, text=input.text, nested=result["text"])


asyncio.run(server.run(host=HOST, port=PORT, instance_id=INSTANCE))
