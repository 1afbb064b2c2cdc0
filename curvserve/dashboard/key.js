// The API key, where the server asks for one: kept in this tab, sent with each call.

const NAME = "curvserve.key";
const at = (id) => document.getElementById(id);

const known = () => sessionStorage.getItem(NAME);

export const headers = () => (known() ? { Authorization: `Bearer ${known()}` } : {});

export const isRefused = (answer) => answer.status === 401 || answer.status === 403;

// Show the form, with why the last key did not do.
export function ask(detail) {
  at("key-problem").textContent = known() ? detail : "";
  if (!at("key").hidden) return;
  at("key").hidden = false;
  at("key-value").focus();
}

// Call `then` with each key that is given.
export function whenGiven(then) {
  at("key").addEventListener("submit", (event) => {
    event.preventDefault();
    sessionStorage.setItem(NAME, at("key-value").value.trim());
    at("key").hidden = true;
    then();
  });
}
