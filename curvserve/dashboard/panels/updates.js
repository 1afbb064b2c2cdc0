// How far a step moves each layer, relative to its size.

import { lineChart } from "../charts.js";
import { number } from "../format.js";

const LINES = 6;

export default {
  id: "updates",
  title: "Update-to-weight ratio",
  hint: "|p′ − p| / |p| of the largest layers in one step. About 1e-3 is usual; 1e-1 is a leap, 1e-6 stands still.",
  width: "full",
  create(body) {
    const draw = lineChart(body, { log: true, height: 200 });
    return ({ curvature }) => {
      if (!curvature.length) return "Shown from the next step on.";
      const largest = [...curvature.at(-1).layers].sort((one, other) => other.size - one.size).slice(0, LINES);
      const names = largest.map(({ name }) => name);
      const ratios = curvature.map(({ layers }) => new Map(layers.map((layer) => [layer.name, layer.update_ratio || null])));
      if (ratios.every((found) => names.every((name) => found.get(name) === null))) return "No layer moves.";
      draw([curvature.map(({ version }) => version), ...names.map((name) => ratios.map((found) => found.get(name)))], names);
      const known = largest.filter((layer) => layer.update_ratio !== null);
      return known.slice(0, 3).map((layer) => `${layer.name} ${number(layer.update_ratio, 2)}`).join(", ");
    };
  },
};
