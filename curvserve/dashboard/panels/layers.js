// Every layer in figures.

import { gauge, table } from "../elements.js";
import { count, number, percent } from "../format.js";

const COLUMNS = ["Layer", "Coordinates", "Curvature p10", "p50", "p90", "Below damping", "", "Update ratio"];

export default {
  id: "layers",
  title: "Layers",
  hint: "The newest step that was looked at, at most 8,192 evenly spaced coordinates of each layer.",
  width: "full",
  create(body) {
    const draw = table(body, "Layers", COLUMNS);
    return ({ curvature }) => {
      const newest = curvature.at(-1);
      body.hidden = !newest;
      if (!newest) return "Shown from the next step on.";
      draw(newest.layers.map(({ name, size, curvature: found, update_ratio: ratio }) => [
        name,
        count(size),
        ...[0, 1, 2].map((index) => number(found?.quantiles[index], 2)),
        percent(found?.damped),
        typeof found?.damped === "number" ? gauge(found.damped) : "",
        number(ratio, 2),
      ]));
      return `${newest.layers.length} layers at version ${count(newest.version)}`;
    };
  },
};
