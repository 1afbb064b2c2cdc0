// What is computed, and what survives.

import { lineChart } from "../charts.js";
import { count } from "../format.js";

export default {
  id: "versions",
  title: "Versions",
  hint: "The current version, and the newest one that survives what the durability level promises.",
  create(body) {
    const draw = lineChart(body, { time: true, colours: [0, 2], dashed: [1], format: (value) => (Number.isInteger(value) ? count(value) : "") });
    return ({ ticks, session }) => {
      if (!ticks.length) return "";
      const { version, durable_version: durable } = ticks.at(-1);
      const kept = durable !== null;
      const lines = [ticks.map((tick) => tick.version), ...(kept ? [ticks.map((tick) => tick.durable_version)] : [])];
      draw([ticks.map(({ time }) => time), ...lines], kept ? ["version", "durable"] : ["version"]);
      const level = session ? ` at level ${session.durability}` : "";
      return kept
        ? `Version ${count(version)}, durable ${count(durable)}${level}: ${count(version - durable)} behind`
        : `Version ${count(version)}; nothing is kept${level}`;
    };
  },
};
