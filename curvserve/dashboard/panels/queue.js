// How many requests wait.

import { lineChart } from "../charts.js";

export default {
  id: "queue",
  title: "Queue depth",
  hint: "Requests that wait or are being computed, the most in each second.",
  create(body) {
    const draw = lineChart(body, { time: true, from: 0, colours: [3], format: (value) => (Number.isInteger(value) ? `${value}` : "") });
    return ({ ticks }) => {
      if (!ticks.length) return "";
      draw([ticks.map(({ time }) => time), ticks.map(({ depth }) => depth)], ["requests"]);
      const { depth } = ticks.at(-1);
      return depth === 1 ? "1 request" : `${depth} requests`;
    };
  },
};
