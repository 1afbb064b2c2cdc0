// The model's metrics, for instance the accuracy.

import { lineChart } from "../charts.js";
import { number } from "../format.js";

export default {
  id: "metrics",
  title: "Metrics",
  hint: "Of each step's batch, before the step.",
  create(body) {
    const draw = lineChart(body, { colours: [2, 1, 3, 4, 5, 0] });
    return ({ steps }) => {
      if (!steps.length) return "No steps yet.";
      const names = Object.keys(steps.at(-1).metrics);
      if (!names.length) return "The model has no metrics.";
      const xs = steps.map(({ version }) => version);
      draw([xs, ...names.map((name) => steps.map(({ metrics }) => metrics[name] ?? null))], names);
      return names.map((name) => `${name} ${number(steps.at(-1).metrics[name])}`).join(", ");
    };
  },
};
