// Who calls.

import { table } from "../elements.js";
import { ago, count } from "../format.js";

export default {
  id: "clients",
  title: "Clients",
  width: "third",
  hint: "By the name of their API key, or by address where no keys are asked for. This page is one of them.",
  create(body) {
    const draw = table(body, "Clients", ["Client", "Requests", "Last"]);
    return ({ status }) => {
      if (!status) return "";
      draw(status.clients.map(({ name, requests, last }) => [name, count(requests), ago(status.time - last)]));
      const requests = status.clients.reduce((sum, client) => sum + client.requests, 0);
      return `${status.clients.length === 1 ? "1 client" : `${status.clients.length} clients`}, ${count(requests)} requests`;
    };
  },
};
