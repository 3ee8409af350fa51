// The console in a browser. It counts the bytes it has shown, so that after a lost connection it goes on where it
// was: no gap, no repeat.

import { Terminal } from "./xterm.mjs";
import { FitAddon } from "./addon-fit.mjs";
import { admit } from "./admit.mjs";

const RETRY_MAX = 8000; // ms
const PIECE = 16384; // bytes of one message
const UNWANTED = 1008; // the close code of who should not come back by itself

const element = (id) => document.getElementById(id);
const terminal = new Terminal({ scrollback: 10000, cursorBlink: true, convertEol: false });
const fit = new FitAddon();
terminal.loadAddon(fit);
terminal.open(element("terminal"));
fit.fit();
addEventListener("resize", () => fit.fit());

const asked = new URLSearchParams(location.search);
const name = asked.get("console") ?? "0";
const mode = asked.get("mode") === "ro" ? "ro" : "auto";
let offset = null; // of the next byte; null: nothing has been shown yet
let epoch = null; // of the daemon that counts so
let live = 0; // the offset up to which it was printed earlier
let keyboard = false; // there is one to be had
let replaying = false; // what the terminal would answer to that, nobody asks any more
let socket = null;
let retry = 250;

async function connect() {
  const url = new URL(`console/${encodeURIComponent(name)}`, location.href);
  url.protocol = url.protocol.replace("http", "ws");
  url.search = new URLSearchParams(offset === null ? { mode } : { mode, since: offset });
  try {
    await admit(url);
  } catch (fault) {
    again(fault.message);
    return;
  }
  socket = new WebSocket(url);
  socket.binaryType = "arraybuffer";
  socket.onmessage = (message) =>
    typeof message.data === "string" ? told(JSON.parse(message.data)) : shown(new Uint8Array(message.data));
  socket.onclose = (closed) => {
    role("ro");
    element("steal").hidden = true;
    if (closed.code === UNWANTED) {
      element("back").hidden = false;
      return;
    }
    again("connection lost");
  };
}

function again(why) {
  link(`${why}; again in ${(retry / 1000).toFixed(1)} s`, true);
  setTimeout(connect, retry);
  retry = Math.min(retry * 2, RETRY_MAX);
}

function shown(bytes) {
  offset += bytes.length;
  const caughtUp = offset >= live;
  const current = socket;
  terminal.write(bytes, () => {
    if (caughtUp && current === socket) replaying = false;
  });
}

function told(note) {
  switch (note.type) {
    case "hello":
      retry = 250;
      if (epoch !== null && epoch !== note.epoch) {
        // another daemon: all of its console, from the beginning
        terminal.reset();
        offset = epoch = null;
        socket.close();
        return;
      }
      if (offset !== null && note.offset > offset) line(`${note.offset - offset} bytes are no longer kept`);
      [offset, epoch, live] = [note.offset, note.epoch, note.live];
      replaying = offset < live;
      keyboard = note.input !== "none" && mode !== "ro";
      element("guest").textContent = note.console === "0" ? note.guest : `${note.guest}: ${note.console}`;
      document.title = `${note.guest} console`;
      link("connected", false);
      state(note.state);
      role(note.role);
      break;
    case "role":
      role(note.role);
      break;
    case "state":
      state(note.state);
      break;
    case "opened":
      line(`boot ${note.boot}`);
      break;
    case "denied":
      link(note.why, true);
      break;
    case "end":
      line(note.why);
      link(note.why, true);
      break;
  }
}

function role(role) {
  const writes = role === "rw";
  element("role").textContent = writes ? "read-write" : "read-only";
  element("role").className = `badge ${role}`;
  element("steal").hidden = writes || !keyboard;
  terminal.options.disableStdin = !writes;
}

function state(state) {
  element("state").textContent = state;
  element("state").className = `badge ${state}`;
}

function link(text, lost) {
  element("link").textContent = text;
  element("link").className = lost ? "lost" : "";
}

function line(text) {
  terminal.write(`\r\n\x1b[2m--- ${text} ---\x1b[0m\r\n`);
}

function send(data) {
  if (socket?.readyState === WebSocket.OPEN) socket.send(data);
}

function typed(bytes) {
  if (replaying) return;
  for (let at = 0; at < bytes.length; at += PIECE) send(bytes.subarray(at, at + PIECE));
}

const encoder = new TextEncoder();
terminal.onData((text) => typed(encoder.encode(text)));
terminal.onBinary((text) => typed(Uint8Array.from(text, (letter) => letter.charCodeAt(0))));
element("back").onclick = () => {
  element("back").hidden = true;
  connect();
  terminal.focus();
};
element("steal").onclick = () => {
  send(JSON.stringify({ type: "steal" }));
  terminal.focus();
};

connect();
terminal.focus();
