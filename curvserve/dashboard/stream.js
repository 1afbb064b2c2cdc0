// Server-sent events by fetch: EventSource cannot send an API key.
// The format: https://html.spec.whatwg.org/multipage/server-sent-events.html

const SILENCE = 20_000; // the server says something each second, and a ping at least every 15 s
const LONGEST_WAIT = 10_000;

// Yield the events of a body, `{ event, data, id }`; a ping yields nothing.
async function* events(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  let lines = [];
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    const parts = (rest + value).split(/\r\n|\n|\r(?!$)/);
    rest = parts.pop();
    for (const line of parts) {
      if (line) lines.push(line);
      else {
        const event = parsed(lines);
        lines = [];
        yield event;
      }
    }
  }
}

function parsed(lines) {
  const event = { event: "message", data: [], id: null };
  for (const line of lines) {
    const colon = line.indexOf(":");
    const name = colon < 0 ? line : line.slice(0, colon);
    const value = colon < 0 ? "" : line.slice(colon + 1).replace(/^ /, "");
    if (name === "data") event.data.push(value);
    else if (name === "event" || name === "id") event[name] = value;
  }
  return { ...event, data: event.data.join("\n") };
}

// A stream that is opened again when it ends, from the last event that was seen.
//   open     called with each connection, before its first event
//   event    called with kind and members
//   state    called with "live", "connecting", "waiting" (and seconds), "gone" (and seconds), "key"
export class Stream {
  #last = null;
  #stopped = false;
  #abort = null;
  #failures = 0;

  constructor(url, headers, { open, event, state }) {
    Object.assign(this, { url, headers, open, event, state });
    this.#run();
  }

  stop() {
    this.#stopped = true;
    this.#abort?.abort();
  }

  async #run() {
    while (!this.#stopped) {
      try {
        await this.#once();
      } catch (error) {
        if (this.#stopped) return;
        if (error.key) return this.state("key", error.key);
      }
      if (!this.#stopped) await this.#wait();
    }
  }

  async #once() {
    const abort = (this.#abort = new AbortController());
    let silence = setTimeout(() => abort.abort(), SILENCE);
    try {
      const headers = { ...this.headers(), ...(this.#last ? { "Last-Event-ID": this.#last } : {}) };
      const answer = await fetch(this.url, { headers, signal: abort.signal, cache: "no-store" });
      if (answer.status === 401 || answer.status === 403) throw { key: (await answer.json()).detail };
      if (!answer.ok) throw new Error(`status ${answer.status}`);
      this.#failures = 0;
      queueMicrotask(() => {
        this.state("live");
        this.open();
      });
      for await (const { event, data, id } of events(answer.body)) {
        clearTimeout(silence);
        silence = setTimeout(() => abort.abort(), SILENCE);
        if (id !== null) this.#last = id;
        // on its own, so that what fails there is told, and is not taken for the network
        if (data) queueMicrotask(() => !this.#stopped && this.event(event, JSON.parse(data)));
      }
    } finally {
      clearTimeout(silence);
    }
  }

  async #wait() {
    this.#failures += 1;
    const wait = Math.min(LONGEST_WAIT, 500 * 2 ** (this.#failures - 1)) * (0.75 + Math.random() / 2);
    const until = Date.now() + wait;
    while (!this.#stopped && Date.now() < until) {
      const seconds = Math.ceil((until - Date.now()) / 1000);
      this.state(this.#failures > 3 ? "gone" : "waiting", seconds);
      await new Promise((resolve) => setTimeout(resolve, Math.min(1000, until - Date.now())));
    }
    if (!this.#stopped) this.state("connecting");
  }
}
