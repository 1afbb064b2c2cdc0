// Where the time of a request goes.

import { element, gauge, table } from "../elements.js";
import { milliseconds } from "../format.js";

const MEANINGS = { decode: "batch read and checked", queue: "waiting for its turn", compute: "pass and update", journal: "made durable", encode: "answer written", total: "first byte to last" };

export default {
  id: "latency",
  title: "Latency by phase",
  hint: "Of the newest 512 requests that computed something; the bar is the median's share of the total.",
  create(body) {
    const draw = table(body, "Latency by phase", ["Phase", "p50", "p95", "p99", ""]);
    return ({ ticks }) => {
      const latency = ticks.at(-1)?.latency ?? {};
      const phases = Object.keys(MEANINGS).filter((phase) => phase in latency);
      body.hidden = !phases.length;
      if (!phases.length) return "No requests yet.";
      draw(phases.map((phase) => [
        element("span", {}, phase, element("span", { class: "aside" }, MEANINGS[phase])),
        ...["p50", "p95", "p99"].map((quantile) => milliseconds(latency[phase][quantile])),
        gauge(latency[phase].p50 / latency.total.p50),
      ]));
      const { p50, p95, p99 } = latency.total;
      return `Total: p50 ${milliseconds(p50)}, p95 ${milliseconds(p95)}, p99 ${milliseconds(p99)}`;
    };
  },
};
