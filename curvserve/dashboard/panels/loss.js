// The loss of each step's batch.

import { lineChart } from "../charts.js";
import { element } from "../elements.js";
import { count, number } from "../format.js";

const KEPT = 0.9; // of the running mean

export default {
  id: "loss",
  title: "Loss",
  hint: "Of each step's batch, before the step; the thick line is its running mean.",
  create(body, { tools, redraw }) {
    const log = element("input", { type: "checkbox" });
    log.addEventListener("change", redraw);
    tools.append(element("label", {}, log, "log scale"));
    let failed = [];
    const draw = lineChart(body, { faint: [0], colours: [0, 0], marks: () => failed });
    return ({ steps, failed: failures }) => {
      failed = failures.map(({ version }) => version);
      if (!steps.length) return "No steps yet.";
      const losses = steps.map(({ loss }) => loss);
      const positive = losses.every((loss) => loss > 0);
      draw([steps.map(({ version }) => version), losses, smoothed(losses)], ["loss", "running mean"], {
        log: log.checked && positive,
      });
      const { loss, version } = steps.at(-1);
      const marks = failures.length ? `, ${failures.length} failed (marked)` : "";
      return `${number(loss)} at version ${count(version)}${marks}`;
    };
  },
};

// The exponential mean, corrected for its beginning as in Adam.
function smoothed(values) {
  let [mean, weight] = [0, 0];
  return values.map((value) => {
    mean = KEPT * mean + (1 - KEPT) * value;
    weight = KEPT * weight + 1 - KEPT;
    return mean / weight;
  });
}
