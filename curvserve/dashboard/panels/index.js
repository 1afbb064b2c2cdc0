// Every panel, in the order of the page. A panel is one file and one line here; its file exports
//   id, title, hint    what it is, and how to read it
//   width              "third", "half" (the default), "wide" or "full"
//   create(body, { tools, redraw })
//                      fills its card once, and returns `update(store)`, which draws what is known
//                      now and returns it in words: the line under the title, read by everybody

import clients from "./clients.js";
import curvature from "./curvature.js";
import damping from "./damping.js";
import failures from "./failures.js";
import latency from "./latency.js";
import layers from "./layers.js";
import loss from "./loss.js";
import metrics from "./metrics.js";
import queue from "./queue.js";
import rate from "./rate.js";
import sessions from "./sessions.js";
import updates from "./updates.js";
import versions from "./versions.js";

export const panels = [
  loss, metrics, curvature, damping, updates, layers, rate, latency, queue, versions, failures, sessions, clients,
];
