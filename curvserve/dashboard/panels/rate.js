// Steps per second.

import { lineChart } from "../charts.js";
import { number } from "../format.js";

const SHOWN = 120; // seconds
const MEAN = 5;

export default {
  id: "rate",
  title: "Step rate",
  hint: "Steps per second, by the server's clock; the last two minutes.",
  create(body) {
    const draw = lineChart(body, { time: true, from: 0 });
    return ({ steps, status }) => {
      const timed = steps.filter(({ time }) => time); // those of an earlier process have none
      if (!timed.length) return "No steps yet.";
      const now = Math.floor(Math.max(status?.time ?? 0, timed.at(-1).time)); // the second under way is not over
      const first = Math.max(now - SHOWN, Math.floor(timed[0].time));
      const counts = new Array(Math.max(1, now - first)).fill(0);
      for (const { time } of timed) {
        const second = Math.floor(time) - first;
        if (second >= 0 && second < counts.length) counts[second] += 1;
      }
      draw([counts.map((_, second) => first + second), counts], ["steps/s"]);
      const last = counts.slice(-MEAN);
      return `${number(last.reduce((sum, each) => sum + each, 0) / last.length)} steps/s over the last ${last.length} s`;
    };
  },
};
