// Elements from plain values. Text goes in as text: names come from whoever calls the server.

export function element(tag, properties = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name === "class") made.className = value;
    else if (name in made) made[name] = value;
    else made.setAttribute(name, value);
  }
  made.append(...children);
  return made;
}

// A table whose rows are replaced: `columns` are names, `rows` lists of texts or elements.
export function table(body, label, columns) {
  const rows = element("tbody");
  const head = columns.map((name) => element("th", { scope: "col" }, name || element("span", { class: "unseen" }, "as a bar")));
  const whole = element("table", { "aria-label": label },
    element("thead", {}, element("tr", {}, ...head)), rows);
  body.append(element("div", { class: "scroll", tabIndex: 0, role: "region", "aria-label": label }, whole));
  return (lines) => rows.replaceChildren(...lines.map((line) => element("tr", {}, ...line.map(cell))));
}

function cell(content, index) {
  if (index === 0) return element("th", { scope: "row" }, content);
  return element("td", { class: content.className === "gauge" ? "bar-cell" : "" }, content);
}

export function gauge(share) {
  const filled = element("i");
  filled.style.width = `${100 * Math.min(1, Math.max(0, share))}%`;
  return element("div", { class: "gauge", "aria-hidden": "true" }, filled);
}

// The colour that a name of page.css stands for now, as a canvas takes it.
export function colour(name) {
  const probe = document.body.appendChild(element("span", { hidden: true }));
  probe.style.color = `var(--${name})`;
  const found = getComputedStyle(probe).color;
  probe.remove();
  return found;
}
