// Steps that changed nothing, because something was not finite or otherwise wrong.

import { element, table } from "../elements.js";
import { clock, count } from "../format.js";

const SHOWN = 50;

export default {
  id: "failures",
  title: "Non-finite and failed steps",
  width: "third",
  hint: "Each left the session as it was. Since the server's start.",
  create(body) {
    const figure = body.appendChild(element("p", { class: "figure" }));
    const place = body.appendChild(element("div"));
    const draw = table(place, "Failed steps", ["Time", "Version", "Code"]);
    return ({ failed }) => {
      const infinite = failed.filter(({ code }) => code === "non_finite").length;
      figure.textContent = count(infinite);
      figure.classList.toggle("bad", infinite > 0);
      place.hidden = !failed.length;
      draw(failed.slice(-SHOWN).reverse().map(({ time, version, code }) => [clock(time), count(version), code]));
      const others = failed.length - infinite;
      return `${infinite || "No"} non-finite ${infinite === 1 ? "step" : "steps"}${others ? `, ${others} failed otherwise` : ""}`;
    };
  },
};
