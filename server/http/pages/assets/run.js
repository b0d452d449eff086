// One request under way: from the press of a button to its images, or to the reason why there are none.
import { ApiError, ask, ConnectionLost, eventsOf } from "./api.js";
import { streamBody, streamPath } from "./request.js";

/** @typedef {import("./request.js").Wish} Wish */
/** @typedef {import("./api.js").Tier} Tier */
/**
 * @typedef {Object} Picture  one image of a run
 * @property {string} url  of the newest preview, or of the image; empty before there is one
 * @property {number} step  computed steps behind it
 * @property {boolean} done
 * @property {number} seed
 */
/**
 * @typedef {Object} Plan  what the server says of it at first
 * @property {string} tier
 * @property {string} schedule
 * @property {number} seed
 * @property {number} guidance_scale
 * @property {number} steps
 * @property {number} macs
 * @property {number} relative_cost
 * @property {number} predicted_ms
 */
/**
 * @typedef {Object} Run
 * @property {string} id
 * @property {Wish} wish
 * @property {Tier[]} offered  by the model when it was asked: it may mean others by their names later, or another model be shown
 * @property {AbortController} connection
 * @property {"asking" | "running" | "done" | "failed"} state
 * @property {Plan | null} plan
 * @property {Picture[]} pictures
 * @property {import("./api.js").Warning[]} warnings
 * @property {any} answer  what POST /generate would have answered
 * @property {number} milliseconds  from the press to the last image
 * @property {ApiError | null} error
 */

const MAX_PREVIEWS = 3;

/** @param {Wish} wish @param {Tier[]} offered @returns {Run} */
export function beginning(wish, offered) {
  const pictures = Array.from({ length: wish.count }, (_, i) => ({ url: "", step: 0, done: false, seed: wish.seed + i }));
  const id = `page-${crypto.getRandomValues(new Uint32Array(3)).join("-")}`;
  return {
    id,
    wish,
    offered,
    connection: new AbortController(),
    state: "asking",
    plan: null,
    pictures,
    warnings: [],
    answer: null,
    milliseconds: 0,
    error: null,
  };
}

/**
 * Ask, and follow the stream to its end. Never raises: how it went is in the run.
 * @param {Run} run
 * @param {number} computed  steps that the tier computes at least: there are fewer previews than that
 * @param {(run: Run) => void} show  called with each new state
 * @returns {Promise<Run>} the last one
 */
export async function follow(run, computed, show) {
  const start = performance.now();
  let now = run;
  const become = (/** @type {Partial<Run>} */ change) => {
    now = { ...now, ...change };
    show(now);
  };
  const picture = (/** @type {number} */ i, /** @type {Partial<Picture>} */ change) =>
    become({ pictures: now.pictures.map((one, at) => (at === i ? { ...one, ...change } : one)) });
  show(now);
  try {
    const body = JSON.stringify(streamBody(run.wish, Math.max(0, Math.min(MAX_PREVIEWS, computed - 1))));
    const answer = await ask(streamPath(run.wish), { method: "POST", body, id: run.id, signal: run.connection.signal });
    for await (const { event, data } of eventsOf(answer)) {
      const url = data.b64_json ? `data:image/${data.output_format};base64,${data.b64_json}` : "";
      const what = event.slice(event.indexOf(".") + 1);
      if (what === "planned") become({ state: "running", plan: data, warnings: data.warnings });
      if (what === "step") picture(data.image_index, { step: data.step });
      if (what === "partial_image") picture(data.image_index, { url });
      if (what === "completed") {
        picture(data.image_index, { url, done: true, seed: data.seed, step: now.plan?.steps ?? 0 });
        if (data.request) become({ state: "done", answer: data.request, milliseconds: performance.now() - start });
      }
    }
    if (now.state !== "done") throw new ConnectionLost();
  } catch (fault) {
    const code = run.connection.signal.aborted ? "cancelled" : "page_fault";
    const error = fault instanceof ApiError ? fault : new ApiError(0, { code, message: String(fault) });
    become({ state: "failed", error, milliseconds: performance.now() - start });
  }
  return now;
}

/**
 * Ask the server to give it up; its stream says so then. Where another one of the server's processes answers, which does not
 * know the request, the connection is closed, which comes to the same.
 * @param {Run} run
 * @returns {Promise<void>}
 */
export async function cancel(run) {
  await ask(`v1/requests/${run.id}`, { method: "DELETE" }).catch(() => run.connection.abort());
}

/** The tier that a run asked for by its name; none where it is `auto`. @param {Run} run @returns {Tier | undefined} */
export function tierOf(run) {
  return run.offered.find((one) => one.tier === run.wish.tier);
}

/** @param {Run} run @returns {boolean} */
export function isUnderWay(run) {
  return run.state === "asking" || run.state === "running";
}
