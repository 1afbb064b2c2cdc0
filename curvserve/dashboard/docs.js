// The API, drawn from openapi.json: every call with its parameters, bodies, answers and problems.

import { element } from "./elements.js";
import * as key from "./key.js";

const DOCUMENT = new URL("../openapi.json", import.meta.url);
const place = document.getElementById("calls");

async function begin() {
  const answer = await fetch(DOCUMENT, { headers: key.headers() });
  const found = await answer.json();
  if (key.isRefused(answer)) return key.ask(found.detail);
  draw(found);
}

function draw({ info, paths, components }) {
  const groups = new Map();
  for (const [path, calls] of Object.entries(paths)) {
    for (const [method, call] of Object.entries(calls)) {
      const group = call.tags?.[0] ?? "other";
      groups.set(group, [...(groups.get(group) ?? []), drawCall(path, method, call, components)]);
    }
  }
  place.replaceChildren(
    element("p", {}, `${info.title} ${info.version}. Bodies of tensors travel as safetensors; small ones also as JSON.`),
    ...[...groups].flatMap(([name, calls]) => [element("h2", {}, name), ...calls]),
  );
  open();
}

function drawCall(path, method, call, components) {
  const id = `${method}-${path}`;
  const inside = element("div", { class: "inside" });
  if (call.description) inside.append(element("p", {}, call.description));
  const scope = call.security?.[0]?.api_key?.[0];
  inside.append(element("p", {}, scope ? `Needs a key of scope ${scope}, where keys are asked for.` : "Needs no key."));
  const curl = `curl ${method === "get" ? "" : `-X ${method.toUpperCase()} `}${scope ? "-H 'Authorization: Bearer KEY' " : ""}'${new URL(`..${path}`, import.meta.url).href.replaceAll("%7B", "{").replaceAll("%7D", "}")}'`;
  inside.append(element("h3", {}, "Call"), code(curl));
  if (call.parameters?.length) inside.append(element("h3", {}, "Parameters"), parameters(call.parameters));
  for (const [type, { schema }] of Object.entries(call.requestBody?.content ?? {})) {
    inside.append(element("h3", {}, `Body: ${type}`), code(text(schema, components)));
  }
  inside.append(element("h3", {}, "Answers"), answers(call.responses, components));
  return element("details", { id },
    element("summary", {}, element("span", { class: "method" }, method.toUpperCase()), element("code", {}, path),
      element("span", { class: "hint" }, call.summary ?? "")),
    inside);
}

function parameters(all) {
  return rows(["Name", "In", "Type", "Meaning"], all.map(({ name, in: where, required, schema, description }) => [
    element("code", {}, name + (required ? " *" : "")), where, kind(schema), description ?? schema?.description ?? "",
  ]));
}

function answers(all, components) {
  return rows(["Status", "What", "Body"], Object.entries(all).map(([status, { description, content = {} }]) => {
    const bodies = Object.entries(content).map(([type, { schema }]) =>
      type.includes("problem") || !schema || !Object.keys(schema).length
        ? element("div", {}, type)
        : element("details", {}, element("summary", {}, type), code(text(schema, components))));
    return [status, description.replaceAll("`", ""), element("div", {}, ...bodies)];
  }));
}

function rows(columns, lines) {
  return element("table", {},
    element("thead", {}, element("tr", {}, ...columns.map((name) => element("th", { scope: "col" }, name)))),
    element("tbody", {}, ...lines.map((line) => element("tr", {}, ...line.map((cell) => element("td", {}, cell))))));
}

const code = (content) => element("pre", { tabIndex: 0 }, content);

const kind = (schema = {}) => schema.type ?? schema.anyOf?.map((each) => each.type).join(" or ") ?? "";

// A schema with its references filled in; one within itself stays a reference.
function text(schema, components, seen = []) {
  const filled = (part, within) => {
    if (Array.isArray(part)) return part.map((each) => filled(each, within));
    if (part === null || typeof part !== "object") return part;
    const name = part.$ref?.split("/").at(-1);
    if (name !== undefined) return within.includes(name) ? name : filled(components.schemas[name], [...within, name]);
    return Object.fromEntries(Object.entries(part).map(([member, value]) => [member, filled(value, within)]));
  };
  return JSON.stringify(filled(schema, seen), null, 2);
}

const hash = (id) => `#${encodeURIComponent(id)}`;

// Open the call that the address names.
function open() {
  const wanted = [...place.querySelectorAll("details")].find(({ id }) => id && hash(id) === location.hash);
  if (!wanted) return;
  wanted.open = true;
  wanted.scrollIntoView();
}

addEventListener("hashchange", open);
place.addEventListener("toggle", ({ target }) => {
  if (target.open && target.id) history.replaceState(null, "", hash(target.id));
}, true);
key.whenGiven(begin);
begin();
