// What is known of one session: filled from its history, then by events.

const STEPS = 4096; // as many as the server remembers
const CURVATURES = 480;
const TICKS = 900; // a quarter of an hour

export class Store {
  constructor() {
    this.session = null; // what GET /v1/sessions/{name} says
    this.status = null; // the newest `status` of the server
    this.clear();
  }

  clear() {
    this.steps = []; // the oldest first
    this.failed = [];
    this.curvature = [];
    this.ticks = []; // what `status` said of this session
  }

  get version() {
    return this.steps.at(-1)?.version ?? -1;
  }

  // Where history and stream overlap, each version is kept once.
  addHistory({ steps, failed, curvature }) {
    this.steps = joined(this.steps, steps).slice(-STEPS);
    this.curvature = joined(this.curvature, curvature).slice(-CURVATURES);
    this.failed = failed;
  }

  addStep(step) {
    if (step.version <= this.version) return;
    this.steps.push(step);
    if (this.steps.length > STEPS) this.steps.splice(0, this.steps.length - STEPS);
  }

  addCurvature(found) {
    if (found.version <= (this.curvature.at(-1)?.version ?? -1)) return;
    this.curvature.push(found);
    // all of the training stays in view: what is older, only ever more thinly
    if (this.curvature.length >= CURVATURES) {
      this.curvature = this.curvature.filter((_, index, all) => index % 2 === 0 || index === all.length - 1);
    }
  }

  addFailure(failure) {
    this.failed.push(failure);
  }

  addStatus(status, name) {
    this.status = status;
    const own = status.sessions.find((session) => session.name === name);
    if (!own) return;
    this.ticks.push({ time: status.time, ...own });
    if (this.ticks.length > TICKS) this.ticks.shift();
  }

  // Whether the server was started anew: its versions and numbers are others then.
  isOther(status) {
    return this.status !== null && this.status.started !== status.started;
  }
}

function joined(first, second) {
  const byVersion = new Map([...first, ...second].map((each) => [each.version, each]));
  return [...byVersion.values()].sort((one, other) => one.version - other.version);
}
