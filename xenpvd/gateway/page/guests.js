// The guests of this host, looked at every few seconds.

import { ask, remember, token } from "./admit.mjs";

const EVERY = 3000; // ms

const element = (id) => document.getElementById(id);
const rows = element("guests").tBodies[0];
let next = null;

async function look() {
  clearTimeout(next);
  try {
    const { role, guests } = await ask("/v1/guests");
    rows.replaceChildren(...guests.map(row));
    element("role").textContent = role;
    say(guests.length ? "" : "there is no guest", false);
    inside(true);
  } catch (fault) {
    say(fault.status === 401 && !token() ? "" : fault.message, true);
    if (fault.status === 401) return inside(false);
  }
  next = setTimeout(look, EVERY);
}

function row(guest) {
  const line = document.createElement("tr");
  line.append(cell(guest.name));
  if (guest.why !== null) {
    const why = cell(guest.why);
    why.className = "why";
    why.colSpan = 6;
    line.append(why);
    return line;
  }
  const badge = document.createElement("span");
  badge.className = `badge ${guest.state}`;
  badge.textContent = guest.state;
  line.append(cell(badge), cell(guest.vcpus), cell(guest.memory_mib), cell(lasted(guest.uptime)));
  line.append(cell(guest.drives.join(" ")), cell(link(guest.name, "0", "open"), link(guest.name, "xen", "Xen's")));
  return line;
}

function cell(...parts) {
  const made = document.createElement("td");
  made.append(...parts.map((part) => part ?? ""));
  return made;
}

function link(guest, console, text) {
  const made = document.createElement("a");
  made.href = `/v1/guests/${encodeURIComponent(guest)}/?console=${console}`;
  made.textContent = text;
  return made;
}

function lasted(seconds) {
  if (seconds === null) return "";
  const [days, hours, minutes] = [86400, 3600, 60].map((unit) => Math.floor(seconds / unit));
  if (days) return `${days}d${hours % 24}h`;
  if (hours) return `${hours}h${minutes % 60}m`;
  return `${minutes}m${Math.floor(seconds % 60)}s`;
}

function inside(known) {
  element("enter").hidden = known;
  element("guests").hidden = !known;
  element("leave").hidden = !known || !token();
  if (!known) {
    element("role").textContent = "";
    element("token").focus();
  }
}

function say(text, lost) {
  element("link").textContent = text;
  element("link").className = lost ? "lost" : "";
}

element("enter").onsubmit = (event) => {
  event.preventDefault();
  remember(element("token").value.trim());
  element("token").value = "";
  look();
};
element("leave").onclick = () => {
  remember(null);
  rows.replaceChildren();
  look();
};

look();
