// Line charts: uPlot in the page's colours, as wide as its card, drawn anew when the colours change.

import { colour } from "./elements.js";
import { clock, number } from "./format.js";

const PALETTE = 6;

// what the x axis is divided by
const SECONDS = [1, 2, 5, 10, 15, 30, 60, 120, 300, 600];
const WHOLE = [1, 2, 5].flatMap((each) => [...Array(9)].map((_, power) => each * 10 ** power)).sort((a, b) => a - b);

// Return `draw(data, names)`; data is [xs, ys, ...], names label the lines.
//   time     x is seconds since 1970; otherwise a version
//   log      the y axis is logarithmic
//   format   a y value as text
//   dashed   indices of lines that are dashed; `colours` index of the palette for each line
//   faint    indices of lines behind the others
//   marks    gives xs at which something went wrong
//   from     the y axis begins there
export function lineChart(body, options) {
  const place = body.appendChild(document.createElement("div"));
  place.className = "chart";
  let plot = null;
  let last = null;
  let shape = "";

  function draw(data, names, { log = options.log } = {}) {
    last = [data, names, { log }];
    const width = Math.floor(place.clientWidth);
    if (!width || !data[0].length) return;
    const wanted = JSON.stringify([names, log, document.documentElement.dataset.theme]);
    if (plot && shape === wanted) {
      if (plot.width !== width) plot.setSize({ width, height: plot.height });
      plot.setData(data);
      return;
    }
    plot?.destroy();
    shape = wanted;
    plot = new uPlot(described(options, names, log, width), data, place);
    plot.root.setAttribute("aria-hidden", "true"); // the panel's reading says it
  }

  const again = () => last && draw(...last);
  new ResizeObserver(again).observe(place);
  addEventListener("themechange", again);
  return draw;
}

function described(options, names, log, width) {
  const { time = false, format = number, dashed = [], faint = [], colours = [], marks, from, height = 210 } = options;
  const [line, quiet, bad] = ["line", "quiet", "bad"].map(colour);
  const font = "12px system-ui, -apple-system, 'Segoe UI', Roboto, 'DejaVu Sans', sans-serif";
  const axis = { stroke: quiet, font, ticks: { show: false }, grid: { stroke: line, width: 1 } };
  const x = time ? (_, values) => values.map(shortTime) : (_, values) => values.map((v) => (Number.isInteger(v) ? v.toLocaleString("en") : ""));
  const y = (_, values) => values.map((value) => (value === null ? "" : format(value)));
  const xs = (_, low, high) => (low === high ? [low - 1, high + 1] : [low, high]);
  const named = (_, values) => powers(values);
  const range = log ? undefined : (_, low, high) => padded(low, high, from);
  return {
    width, height,
    padding: [8, time ? 32 : 16, 0, 0],
    scales: { x: { time: false, range: xs }, y: { distr: log ? 3 : 1, range } },
    axes: [
      { ...axis, values: x, space: 76, size: 30, incrs: time ? SECONDS : WHOLE },
      { ...axis, values: y, size: 64, space: log ? 24 : 34, ...(log && { filter: named, grid: { ...axis.grid, filter: named } }) },
    ],
    legend: { show: true, live: true },
    cursor: { y: false, points: { size: 6 }, drag: { x: false, y: false } },
    series: [
      { label: time ? "time" : "version", value: (_, v) => (v === null ? "" : time ? clock(v) : v.toLocaleString("en")) },
      ...names.map((label, index) => ({
        label,
        stroke: alpha(colour(`series-${((colours[index] ?? index) % PALETTE) + 1}`), faint.includes(index) ? 0.35 : 1),
        width: faint.includes(index) ? 1 : 1.75,
        dash: dashed.includes(index) ? [6, 4] : undefined,
        points: { show: (u) => u.data[0].length < 2 },
        spanGaps: true,
        value: (_, v) => (v === null || v === undefined ? "" : format(v)),
      })),
    ],
    hooks: marks ? { draw: [(u) => drawMarks(u, marks(), bad)] } : {},
  };
}

const alpha = (rgb, share) => (share === 1 ? rgb : rgb.replace("rgb(", "rgba(").replace(")", `, ${share})`));
const shortTime = (seconds) => new Date(1000 * seconds).toLocaleTimeString("en-GB");

function padded(low, high, from) {
  if (low === null || high === null) return [0, 1];
  if (from !== undefined) return [from, 1.08 * Math.max(high, from + 1)];
  const room = (high - low || Math.abs(high) || 1) * 0.08;
  return [low - room, high + room];
}

// Of a logarithmic axis only the powers of ten are named, and of many every second or third.
function powers(values) {
  const whole = values.filter((value) => value > 0 && Math.abs(Math.log10(value) - Math.round(Math.log10(value))) < 1e-9);
  if (whole.length < 2) return values;
  const step = Math.ceil(whole.length / 6);
  return values.map((value) => (whole.includes(value) && Math.round(Math.log10(value)) % step === 0 ? value : null));
}

function drawMarks(plot, xs, stroke) {
  const { ctx, bbox } = plot;
  ctx.save();
  ctx.strokeStyle = ctx.fillStyle = stroke;
  ctx.lineWidth = devicePixelRatio;
  ctx.setLineDash([3 * devicePixelRatio, 3 * devicePixelRatio]);
  for (const value of new Set(xs)) {
    if (value < plot.scales.x.min || value > plot.scales.x.max) continue;
    const x = Math.round(plot.valToPos(value, "x", true));
    ctx.beginPath();
    ctx.moveTo(x, bbox.top);
    ctx.lineTo(x, bbox.top + bbox.height);
    ctx.stroke();
    const size = 4 * devicePixelRatio;
    ctx.beginPath();
    ctx.moveTo(x - size, bbox.top);
    ctx.lineTo(x + size, bbox.top);
    ctx.lineTo(x, bbox.top + 1.6 * size);
    ctx.fill();
  }
  ctx.restore();
}
