// Reads an event stream with Node's `fetch` and says each event on a line of its own, as JSON, as
// soon as it is there. After so many it leaves in a manner of its choice.
//
//     node reader.mjs URL [EVENTS cancel|abort]

const [url, count, manner] = process.argv.slice(2);
const controller = new AbortController();
const say = (what) => console.log(JSON.stringify(what));

let said = 0;
try {
  const response = await fetch(url, { signal: controller.signal });
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  say({ status: response.status, type: response.headers.get("content-type") });
  let text = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) break;
    text += value;
    for (let end; (end = text.indexOf("\n\n")) >= 0; text = text.slice(end + 2)) {
      say({ event: text.slice(0, end) });
      if (++said === Number(count)) {
        if (manner === "abort") controller.abort();
        else await reader.cancel();
        say({ left: manner });
        // The process stays, so that nothing but its leaving ends the stream.
        setInterval(() => {}, 1000);
      }
    }
  }
  say({ ended: "whole" });
} catch (error) {
  say({ ended: error.name, cause: error.cause?.code });
}
