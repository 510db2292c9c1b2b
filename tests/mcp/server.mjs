// An MCP server for the tests on the TypeScript SDK, with state in each session: one backend of the
// balancer. What it offers and says is what server.py does.
//
//     node server.mjs HOST PORT INSTANCE

import { randomUUID } from "node:crypto";
import { createServer } from "node:http";

import { McpServer } from "@modelcontextprotocol/sdk/server/mcp.js";
import { StreamableHTTPServerTransport } from "@modelcontextprotocol/sdk/server/streamableHttp.js";
import { z } from "zod";

const [host, port, instance] = process.argv.slice(2);
const sessions = new Map();

function open() {
  const notes = [];
  const server = new McpServer({ name: "stateful", version: "1.0.0" });
  const said = (text) => ({ content: [{ type: "text", text }] });
  server.registerTool("remember", { inputSchema: { text: z.string() } }, async ({ text }) => {
    notes.push(text);
    return said(instance);
  });
  server.registerTool("recall", { inputSchema: {} }, async () =>
    said(JSON.stringify({ instance, notes })),
  );
  server.registerTool("whoami", { inputSchema: {} }, async () => said(instance));
  const transport = new StreamableHTTPServerTransport({
    sessionIdGenerator: randomUUID,
    onsessioninitialized: (id) => sessions.set(id, transport),
    onsessionclosed: (id) => sessions.delete(id),
  });
  return server.connect(transport).then(() => transport);
}

function refuse(response, status, message) {
  response.writeHead(status, { "content-type": "application/json" });
  response.end(JSON.stringify({ jsonrpc: "2.0", id: null, error: { code: -32001, message } }));
}

const server = createServer(async (request, response) => {
  if (request.url === "/health") {
    response.writeHead(200, { "content-type": "application/json" });
    response.end(JSON.stringify({ status: "healthy", instanceId: instance }));
    return;
  }
  const id = request.headers["mcp-session-id"];
  const seen = id === undefined ? {} : { "mcp-session-id": id };
  console.log(JSON.stringify({ request: request.method, ...seen }));
  if (id !== undefined && !sessions.has(id)) {
    refuse(response, 404, "Session not found");
    return;
  }
  const transport = id === undefined ? await open() : sessions.get(id);
  await transport.handleRequest(request, response);
});

server.listen(Number(port), host, () => {
  console.log(JSON.stringify({ port: server.address().port }));
});
process.on("SIGTERM", () => process.exit(0));
