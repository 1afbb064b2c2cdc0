// The diagonal's quantiles against the damping: does preconditioning do anything?

import { lineChart } from "../charts.js";
import { element, gauge } from "../elements.js";
import { number, percent } from "../format.js";

export default {
  id: "damping",
  title: "Curvature against damping",
  hint: "Where the damping is the larger one, a step is one of plain gradient descent.",
  width: "third",
  create(body) {
    const figure = element("p", { class: "figure" });
    const share = element("div", { class: "share" });
    body.append(figure, element("p", { class: "hint" }, "of the coordinates are below the damping"), share);
    const draw = lineChart(body, { log: true, dashed: [3], colours: [5, 0, 2, 1], height: 220 });
    return ({ curvature }) => {
      const known = curvature.filter(({ total, damping }) => total && damping !== null);
      body.hidden = !known.length;
      if (!known.length) return curvature.length ? "The rule has no damping or no curvature." : "Shown from the next step on.";
      const positive = (value) => (value > 0 ? value : null);
      draw([
        known.map(({ version }) => version),
        ...[0, 1, 2].map((index) => known.map(({ total }) => positive(total.quantiles[index]))),
        known.map(({ damping }) => damping),
      ], ["p10", "p50", "p90", "damping"]);
      const { total, damping } = known.at(-1);
      figure.textContent = percent(total.damped);
      share.replaceChildren(gauge(total.damped));
      return `Damping ${number(damping)}, median curvature ${number(total.quantiles[1], 2)}: ${verdict(total.damped)}`;
    };
  },
};

function verdict(share) {
  if (share > 0.99) return "preconditioning does next to nothing.";
  if (share > 0.5) return "the damping rules most coordinates.";
  return "the curvature shapes the step.";
}
