// The API key, where the server asks for one: kept in this tab, sent with each call.

import { element } from "./elements.js";

const NAME = "curvserve.key";
const EXPLAINED = ["This server asks for an API key (scope ", element("code", {}, "read"), " is enough). It is kept in this tab only."];

const problem = element("p", { id: "key-problem", role: "alert" });
const value = element("input", { id: "key-value", type: "password", autocomplete: "off", spellcheck: false, required: true });
const form = element("form", { id: "key", class: "notice", hidden: true },
  element("label", { htmlFor: "key-value" }, ...EXPLAINED),
  element("div", { class: "row" }, value, element("button", { type: "submit" }, "Open")),
  problem);
document.querySelector("main").before(form);

const known = () => sessionStorage.getItem(NAME);

export const headers = () => (known() ? { Authorization: `Bearer ${known()}` } : {});

export const isRefused = (answer) => answer.status === 401 || answer.status === 403;

// Show the form, with why the last key did not do.
export function ask(detail) {
  problem.textContent = known() ? detail : "";
  if (!form.hidden) return;
  form.hidden = false;
  value.focus();
}

// Call `then` with each key that is given.
export function whenGiven(then) {
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    sessionStorage.setItem(NAME, value.value.trim());
    form.hidden = true;
    then();
  });
}
