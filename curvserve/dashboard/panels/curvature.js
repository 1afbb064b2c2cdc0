// The diagonal of the curvature over time: a histogram of log10 in each column.

import { cividis } from "../cividis.js";
import { colour, element } from "../elements.js";
import { count, number, percent } from "../format.js";

const ALL = "";
const HEIGHT = 330;
const EDGES = { left: 58, right: 12, top: 8, bottom: 28 };
const DAMPING = "#ff6f61";

export default {
  id: "curvature",
  title: "Curvature",
  hint: "How log10 of the diagonal is spread over the coordinates, version by version. Dashed: the damping.",
  width: "wide",
  create(body, { tools, redraw }) {
    const picker = element("select", {}, element("option", { value: ALL }, "all layers"));
    picker.addEventListener("change", redraw);
    tools.append(element("label", {}, "Layer", picker));
    const canvas = element("canvas", { role: "img", "aria-labelledby": "curvature-reading" });
    const place = element("div", { class: "chart" }, canvas);
    const most = element("span");
    body.append(place, legend(most));
    new ResizeObserver(redraw).observe(place);
    addEventListener("themechange", redraw);
    return ({ curvature, session }) => {
      offer(picker, curvature);
      const columns = curvature.map((found) => column(found, picker.value)).filter((found) => found.spread);
      body.hidden = !columns.length;
      if (!columns.length) return nothing(curvature, session);
      most.textContent = percent(draw(canvas, place, columns));
      return words(columns.at(-1), picker.value);
    };
  },
};

function column({ version, damping, bins, total, layers }, layer) {
  const spread = layer === ALL ? total : layers.find(({ name }) => name === layer)?.curvature;
  return { version, damping, bins, spread };
}

function nothing(curvature, session) {
  if (curvature.length) return `The rule ${session?.rule ?? ""} uses no curvature.`;
  return "Shown from the next step on: it is looked at while somebody watches.";
}

function words({ version, spread, damping }, layer) {
  const [low, middle, high] = spread.quantiles.map((value) => number(value, 2));
  const zero = spread.zero ? `; ${percent(spread.zero)} are zero and not drawn` : "";
  const below = damping === null ? "" : `; ${percent(spread.damped)} below the damping`;
  return `${layer || "All layers"} at version ${count(version)}: median ${middle}, 80% between ${low} and ${high}${below}${zero}`;
}

function offer(picker, curvature) {
  const names = curvature.at(-1)?.layers.filter(({ curvature: found }) => found).map(({ name }) => name) ?? [];
  const shown = [...picker.options].slice(1).map(({ value }) => value);
  if (!names.length || names.join("\n") === shown.join("\n")) return;
  const { value } = picker;
  picker.replaceChildren(picker.options[0], ...names.map((name) => element("option", { value: name }, name)));
  picker.value = names.includes(value) ? value : ALL;
}

function legend(most) {
  const bar = element("canvas", { width: 140, height: 1, "aria-hidden": "true" });
  const context = bar.getContext("2d");
  for (let x = 0; x < 140; x++) {
    context.fillStyle = `rgb(${cividis(x / 139)})`;
    context.fillRect(x, 0, 1, 1);
  }
  const dash = element("span", { class: "dash", "aria-hidden": "true" });
  return element("p", { class: "scale" }, "0%", bar, most, "of the coordinates in a bin", dash, "damping");
}

// Draw the columns, and return the share that has the brightest colour.
function draw(canvas, place, columns) {
  const width = place.clientWidth;
  const ratio = devicePixelRatio;
  canvas.width = width * ratio;
  canvas.height = HEIGHT * ratio;
  canvas.style.width = `${width}px`;
  canvas.style.height = `${HEIGHT}px`;
  const context = canvas.getContext("2d");
  context.scale(ratio, ratio);
  const area = { x: EDGES.left, y: EDGES.top, width: width - EDGES.left - EDGES.right, height: HEIGHT - EDGES.top - EDGES.bottom };
  const { bins } = columns[0];
  const logs = columns.map(({ damping }) => (damping === null ? null : Math.log10(damping)));
  const [low, high] = limits(columns, logs);
  const y = (log) => area.y + area.height * (1 - (log - low) / (high - low));
  const x = places(columns, area);
  const most = Math.max(...columns.flatMap(({ spread }) => spread.shares));

  context.fillStyle = `rgb(${cividis(0)})`;
  context.fillRect(area.x, area.y, area.width, area.height);
  columns.forEach(({ spread }, index) => spread.shares.forEach((share, offset) => {
    if (!share) return;
    // the root, so that a bin with a hundredth of the fullest one is seen
    context.fillStyle = `rgb(${cividis(Math.sqrt(share / most))})`;
    const bottom = bins.low + bins.step * (spread.first + offset);
    const [left, right] = x(index);
    context.fillRect(left, y(bottom + bins.step), right - left + 0.5, y(bottom) - y(bottom + bins.step) + 0.5);
  }));
  drawDamping(context, logs, x, y);
  drawAxes(context, area, columns, [low, high], y);
  return most / 1000;
}

function limits(columns, logs) {
  const { low, step } = columns[0].bins;
  const damped = logs.filter((log) => log !== null);
  const bottom = Math.min(...columns.map(({ spread }) => low + step * spread.first), ...damped);
  const top = Math.max(...columns.map(({ spread }) => low + step * (spread.first + spread.shares.length)), ...damped);
  return [Math.floor(bottom), Math.ceil(top + 0.2)];
}

// Each column reaches half way to its neighbours.
function places(columns, area) {
  const [first, last] = [columns[0].version, columns.at(-1).version];
  const versions = columns.map(({ version }) => version);
  const at = (version) => area.x + (last === first ? area.width : ((version - first) / (last - first)) * area.width);
  return (index) => [
    index ? at((versions[index - 1] + versions[index]) / 2) : area.x,
    index < versions.length - 1 ? at((versions[index] + versions[index + 1]) / 2) : area.x + area.width,
  ];
}

function drawDamping(context, logs, x, y) {
  context.save();
  context.strokeStyle = DAMPING;
  context.lineWidth = 2;
  context.setLineDash([6, 4]);
  context.beginPath();
  logs.forEach((log, index) => {
    if (log === null) return;
    const [left, right] = x(index);
    context.lineTo(left, y(log));
    context.lineTo(right, y(log));
  });
  context.stroke();
  context.restore();
}

function drawAxes(context, area, columns, [low, high], y) {
  context.fillStyle = colour("quiet");
  context.font = "12px system-ui, -apple-system, 'Segoe UI', Roboto, 'DejaVu Sans', sans-serif";
  context.textBaseline = "middle";
  context.textAlign = "right";
  const step = Math.max(1, Math.ceil((high - low) / 7));
  for (let power = Math.ceil(low / step) * step; power <= high; power += step) {
    context.fillText(power === 0 ? "1" : `1e${power}`, area.x - 8, Math.max(area.y + 6, y(power)));
  }
  context.textBaseline = "alphabetic";
  const [first, last] = [columns[0].version, columns.at(-1).version];
  context.textAlign = "left";
  context.fillText(`version ${count(first)}`, area.x, area.y + area.height + 20);
  context.textAlign = "right";
  if (last > first) context.fillText(count(last), area.x + area.width, area.y + area.height + 20);
}
