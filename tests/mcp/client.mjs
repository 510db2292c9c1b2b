// An MCP client for the tests on the TypeScript SDK. Opens a session through the balancer, leaves
// notes in it, reads them back, ends it, and says what it saw.
//
//     node client.mjs URL NOTES

import { Client } from "@modelcontextprotocol/sdk/client/index.js";
import { StreamableHTTPClientTransport } from "@modelcontextprotocol/sdk/client/streamableHttp.js";

const [url, count] = process.argv.slice(2);
const transport = new StreamableHTTPClientTransport(new URL(url));
const client = new Client({ name: "test", version: "1.0.0" });
const call = async (name, args = {}) =>
  (await client.callTool({ name, arguments: args })).content[0].text;

await client.connect(transport);
const keepers = new Set();
for (let n = 0; n < Number(count); n++) {
  keepers.add(await call("remember", { text: `note ${n}` }));
}
const recalled = JSON.parse(await call("recall"));
const session = transport.sessionId;
await transport.terminateSession();
await client.close();
console.log(JSON.stringify({ keepers: [...keepers], recalled, session }));
