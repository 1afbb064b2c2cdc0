// All sessions of the server.

import { table } from "../elements.js";
import { count, milliseconds } from "../format.js";

export default {
  id: "sessions",
  title: "Sessions",
  width: "third",
  hint: "Of the whole server; the picker above chooses the one that is shown.",
  create(body) {
    const draw = table(body, "Sessions", ["Session", "Version", "Durable", "Queue", "p50"]);
    return ({ status }) => {
      if (!status) return "";
      draw(status.sessions.map(({ name, version, durable_version: durable, depth, latency }) => [
        name, count(version), durable === null ? "–" : count(durable), count(depth), milliseconds(latency.total?.p50),
      ]));
      return status.sessions.length === 1 ? "1 session" : `${status.sessions.length} sessions`;
    };
  },
};
