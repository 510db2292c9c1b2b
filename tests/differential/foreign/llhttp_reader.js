// llhttp as a reader of messages: the parser of Node.js, strict and with each of its leniencies.
//
// On standard input come cases: a line `KIND LENGTH`, where KIND is `request`, or the method that a
// response answers, and so many octets. They are all that comes on that connection. To each goes
// one line on standard output: an object that maps the name of each mode to its reading.
//
//     {"whole": {"start": …, "fields": [[name, value]…], "content": …, "end": N}}
//     {"unfinished": true}
//     {"refused": why}
//
// Octets are written as the characters U+0000 to U+00FF.
//
// llhttp is not in npm in a form that can be used, but undici carries it as WebAssembly. What
// llhttp leaves to its user (which responses have no body, what follows a 1xx) is done here as
// Node's own client does it.
'use strict';

const fs = require('fs');
const path = require('path');

const octets = require(path.join(process.argv[2], 'undici/lib/llhttp/llhttp-wasm.js'));

const REQUEST = 1;
const RESPONSE = 2;
const OK = 0;
const PAUSED = 21;
const PAUSED_UPGRADE = 22;
const BODY_COMES = 0;
const NO_BODY = 1;

let heard = null;
const note = (what) => (_, at, length) => heard[what](Buffer.from(memory(), at, length)) || OK;
const instance = new WebAssembly.Instance(new WebAssembly.Module(octets), {
  env: {
    wasm_on_message_begin: () => OK,
    wasm_on_url: note('target'),
    wasm_on_status: () => OK,
    wasm_on_header_field: note('name'),
    wasm_on_header_value: note('value'),
    wasm_on_headers_complete: (_, status) => heard.head(status),
    wasm_on_body: note('body'),
    wasm_on_message_complete: () => PAUSED,
  },
});
const llhttp = instance.exports;
llhttp._initialize();
const memory = () => llhttp.memory.buffer;

const LENIENCIES = Object.keys(llhttp)
  .filter((name) => name.startsWith('llhttp_set_lenient_'))
  .map((name) => name.slice('llhttp_set_'.length));
const MODES = [['strict', []], ...LENIENCIES.map((one) => [one, [one]]), ['lenient', LENIENCIES]];

/** What the parser says about one message. */
class Message {
  constructor(asked) {
    this.asked = asked;
    this.status = 0;
    this.url = [];
    this.fields = [];
    this.content = [];
    this.inValue = true;
    this.seenHead = false;
  }

  target(piece) {
    this.url.push(Buffer.from(piece));
  }

  // Names and values come in pieces, trailers after the head like fields before it.
  name(piece) {
    if (this.inValue) this.fields.push([[], [], this.seenHead]);
    this.inValue = false;
    this.fields.at(-1)[0].push(Buffer.from(piece));
  }

  value(piece) {
    this.inValue = true;
    this.fields.at(-1)[1].push(Buffer.from(piece));
  }

  head(status) {
    this.seenHead = true;
    this.inValue = true;
    this.status = status;
    const hasNone = this.asked === 'HEAD' || status === 304 || (status >= 100 && status < 200);
    return this.asked !== 'request' && hasNone ? NO_BODY : BODY_COMES;
  }

  body(piece) {
    this.content.push(Buffer.from(piece));
  }

  written(end, method) {
    const text = (pieces) => Buffer.concat(pieces).toString('latin1');
    // Node takes the white space behind a value away, llhttp only that before it.
    const trimmed = (pieces) => text(pieces).replace(/[ \t]+$/, '');
    const fields = this.fields.filter(([, , isTrailer]) => !isTrailer);
    return {
      whole: {
        start: this.asked === 'request' ? [method, text(this.url)] : this.status,
        fields: fields.map(([name, value]) => [text(name), trimmed(value)]),
        content: text(this.content),
        end,
      },
    };
  }
}

const string = (at) => {
  const all = Buffer.from(memory());
  return all.toString('latin1', at, all.indexOf(0, at));
};

function read(kind, input, leniencies) {
  const parser = llhttp.llhttp_alloc(kind === 'request' ? REQUEST : RESPONSE);
  const room = llhttp.malloc(input.length + 1);
  try {
    for (const one of leniencies) llhttp['llhttp_set_' + one](parser, 1);
    Buffer.from(memory()).set(input, room);
    let at = 0;
    for (;;) {
      heard = new Message(kind);
      let result = llhttp.llhttp_execute(parser, room + at, input.length - at);
      let isOver = false;
      if (result === OK) {
        // A body that lasts as long as the connection is over now.
        result = llhttp.llhttp_finish(parser);
        if (result === OK) return { unfinished: true };
        isOver = true;
      }
      if (result !== PAUSED && result !== PAUSED_UPGRADE) {
        if (isOver) return { unfinished: true };
        return { refused: string(llhttp.llhttp_get_error_reason(parser)) };
      }
      const end = isOver ? input.length : llhttp.llhttp_get_error_pos(parser) - room;
      const isInterim = heard.status >= 100 && heard.status < 200;
      if (!isInterim) {
        const method = string(llhttp.llhttp_method_name(llhttp.llhttp_get_method(parser)));
        return heard.written(end, method);
      }
      at = end;
      llhttp[result === PAUSED ? 'llhttp_resume' : 'llhttp_resume_after_upgrade'](parser);
    }
  } finally {
    llhttp.free(room);
    llhttp.llhttp_free(parser);
  }
}

function* cases() {
  let inbox = Buffer.alloc(0);
  const piece = Buffer.alloc(65536);
  const more = () => {
    const n = fs.readSync(0, piece, 0, piece.length, null);
    inbox = Buffer.concat([inbox, piece.subarray(0, n)]);
    return n > 0;
  };
  for (;;) {
    while (!inbox.includes(10)) if (!more()) return;
    const line = inbox.toString('latin1', 0, inbox.indexOf(10));
    inbox = inbox.subarray(line.length + 1);
    const [kind, length] = line.split(' ');
    while (inbox.length < Number(length)) if (!more()) return;
    yield [kind, inbox.subarray(0, Number(length))];
    inbox = inbox.subarray(Number(length));
  }
}

for (const [kind, input] of cases()) {
  const readings = MODES.map(([name, leniencies]) => [name, read(kind, input, leniencies)]);
  fs.writeSync(1, JSON.stringify(Object.fromEntries(readings)) + '\n');
}
