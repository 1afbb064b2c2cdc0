// The page: which session, the stream, and the panels, each of which is a file of its own.

import { element } from "./elements.js";
import { count, number } from "./format.js";
import * as key from "./key.js";
import { panels } from "./panels/index.js";
import { Store } from "./store.js";
import { Stream } from "./stream.js";

const REDRAW = 500; // milliseconds; faster than this nobody reads
const DESCRIBED_AGAIN = 10_000;
const LOADED_AGAIN = 2000; // where it did not succeed

const api = (path) => new URL(`../v1/${path}`, import.meta.url);
const at = (id) => document.getElementById(id);
const store = (globalThis.curvserve = new Store()); // there for the browser's console
let stream = null;
let current = null;
let redrawing = null;
let drawn = 0;

// ---- the API key ----

function askForKey(detail) {
  key.ask(detail);
  say("key", "needs an API key");
}

key.whenGiven(() => {
  stream?.stop();
  stream = null;
  begin();
});

// Return an answer's document; what is refused for want of a key asks for one.
async function read(path) {
  const answer = await fetch(api(path), { headers: key.headers(), cache: "no-store" });
  const found = await answer.json();
  if (key.isRefused(answer)) {
    askForKey(found.detail);
    return null;
  }
  if (answer.status === 404) return null; // it was deleted meanwhile
  if (!answer.ok) throw new Error(found.detail);
  return found;
}

// ---- which session ----

async function begin() {
  const found = await read("sessions").catch(() => undefined);
  if (found) listSessions(found.sessions.map(({ name }) => name));
  if (found !== undefined) return;
  connection("waiting", LOADED_AGAIN / 1000); // the server is not there yet
  setTimeout(begin, LOADED_AGAIN);
}

function listSessions(names) {
  const picker = at("session");
  const shown = [...picker.options].map(({ value }) => value);
  if (names.join("\n") !== shown.join("\n")) {
    picker.replaceChildren(...names.map((name) => element("option", { value: name }, name)));
  }
  picker.disabled = !names.length;
  const wanted = location.hash.slice(1); // names have no character that would be escaped
  const next = names.includes(wanted) ? wanted : names.includes(current) ? current : names[0];
  if (next !== undefined) picker.value = next;
  if (next !== current || !stream) watch(next);
}

at("session").addEventListener("change", (event) => {
  location.hash = event.target.value;
});
addEventListener("hashchange", () => {
  const wanted = location.hash.slice(1);
  if (wanted !== current && [...at("session").options].some(({ value }) => value === wanted)) {
    at("session").value = wanted;
    watch(wanted);
  }
});

function watch(name) {
  stream?.stop();
  current = name;
  store.session = null;
  store.clear();
  redraw();
  const query = name === undefined ? "" : `?session=${encodeURIComponent(name)}`;
  stream = new Stream(api(`events${query}`), key.headers, {
    open: load,
    event: (kind, members) => name === current && happened(kind, members),
    state: (state, detail) => name === current && connection(state, detail),
  });
}

// Fill what the stream does not tell: what was before it, and before it came again.
async function load() {
  const name = current;
  if (name === undefined) return;
  const path = `sessions/${encodeURIComponent(name)}`;
  const found = await Promise.all([read(path), read(`${path}/history?after=${store.version}`)]).catch(() => undefined);
  if (name !== current) return;
  if (found === undefined) return setTimeout(() => name === current && load(), LOADED_AGAIN);
  const [session, history] = found;
  if (!session || !history) return;
  store.session = session;
  store.addHistory(history);
  redraw();
}

setInterval(async () => {
  if (current === undefined || document.hidden || at("connection").dataset.state !== "live") return;
  const name = current;
  const session = await read(`sessions/${encodeURIComponent(name)}`).catch(() => null); // the stream says it
  if (session && name === current) store.session = session;
}, DESCRIBED_AGAIN);

// ---- what happens ----

const handlers = {
  step: ({ session, ...step }) => session === current && store.addStep(step),
  curvature: ({ session, ...found }) => session === current && store.addCurvature(found),
  failed: (failure) => {
    if (failure.session !== current) return;
    store.addFailure(failure);
    at("announcer").textContent = `A step failed at version ${failure.version}: ${failure.code}`;
  },
  missed: () => {
    store.clear();
    load();
  },
  created: ({ session }) => session === current && handlers.missed(), // one of the same name
  checkpoint: ({ session, name }) => {
    if (session === current) at("announcer").textContent = `Checkpoint ${name}`;
  },
  status: (status) => {
    if (store.isOther(status)) {
      handlers.missed();
    }
    store.addStatus(status, current);
    listSessions(status.sessions.map(({ name }) => name));
  },
};

function happened(kind, members) {
  handlers[kind]?.(members);
  redraw();
}

// ---- what is shown ----

const STATES = {
  live: () => "live",
  connecting: () => "connecting",
  waiting: (seconds) => `reconnecting in ${seconds} s`,
  gone: (seconds) => `server gone, trying again in ${seconds} s`,
};

function connection(state, detail) {
  if (state === "key") return askForKey(detail);
  say(state, STATES[state](detail));
}

function say(state, text) {
  const pill = at("connection");
  pill.dataset.state = state;
  // each second of a countdown would be read aloud
  pill.setAttribute("aria-live", state === "waiting" || state === "gone" ? "off" : "polite");
  pill.textContent = text;
}

const updates = panels.map((panel) => {
  const tools = element("div", { class: "tools" });
  const reading = element("p", { class: "reading", id: `${panel.id}-reading` });
  const body = element("div", { class: "body" });
  const card = element("section", { class: "card", id: panel.id, "aria-labelledby": `${panel.id}-title`, "aria-describedby": `${panel.id}-reading` },
    element("header", {}, element("h2", { id: `${panel.id}-title` }, panel.title), tools),
    element("p", { class: "hint" }, panel.hint), reading, body);
  card.dataset.width = panel.width ?? "half";
  at("panels").append(card);
  const update = panel.create(body, { tools, redraw });
  return () => {
    reading.textContent = update(store) ?? "";
  };
});

function redraw() {
  if (redrawing !== null || document.hidden) return;
  const wait = Math.max(0, drawn + REDRAW - performance.now());
  redrawing = setTimeout(() => requestAnimationFrame(draw), wait);
}

function draw() {
  redrawing = null;
  drawn = performance.now();
  drawFacts();
  drawBeginning();
  updates.forEach((update) => update());
}

document.addEventListener("visibilitychange", redraw);

function drawFacts() {
  const { session } = store;
  if (!session) return at("facts").replaceChildren();
  const own = store.ticks.at(-1) ?? session;
  const step = store.steps.at(-1);
  const facts = [
    ["Model", session.model],
    ["Version", count(Math.max(own.version, store.version))],
    ["Durable version", own.durable_version === null ? "none is kept" : count(own.durable_version)],
    ["Steps", count(own.steps)],
    ["Rule", session.rule],
    ["Learning rate", number(session.options.lr)],
    ["Damping", number(step?.update.damping ?? session.options.damping)],
    ["Durability", session.durability],
    ["Execution", session.execution, "long"],
  ];
  at("facts").replaceChildren(...facts.map(([name, value, kind = ""]) =>
    element("div", { class: kind }, element("dt", {}, name), element("dd", {}, value))));
}

function drawBeginning() {
  const { session, status } = store;
  const none = status !== null && !status.sessions.length;
  at("begin").hidden = !none && (!session || store.steps.length > 0);
  if (at("begin").hidden) return;
  const where = JSON.stringify(new URL("..", import.meta.url).href.replace(/\/$/, ""));
  at("begin-title").textContent = none ? "No sessions" : "No steps yet";
  at("begin-code").textContent = (none
    ? ["from curvserve_client import Client", "", `session = Client(${where}).create_session("mnist_cnn")`]
    : ["from curvserve_client import RemoteDiagGGNOptimizer, connect", "", `session = connect(${where}, session=${JSON.stringify(session.name)})`]
  ).concat([
    "optimizer = RemoteDiagGGNOptimizer(session.parameters())",
    "optimizer.step_on(inputs, targets)  # for each batch",
  ]).join("\n");
}

begin();
