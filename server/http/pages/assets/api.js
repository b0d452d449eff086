// The API as pages call it: with the visitor's key, and with errors that say what to do.

/**
 * @typedef {{full: number, partial: number, null: number}} StepCounts
 * @typedef {{psnr: number, rfid: number, images: number} | null} Fidelity
 * @typedef {{tier: string, digest: string, version: number | null, steps: StepCounts, relative_cost: number, macs: number,
 *   predicted_ms: number, fidelity: Fidelity, default_guidance: number}} Tier
 * @typedef {{code: string, message: string}} Warning
 * @typedef {{model: string, default: string, sizes: string[], max_images: number, prompt_kind: "text" | "class" | "none",
 *   classes: string[], guides: boolean, examples: string[], tiers: Tier[], warnings: Warning[]}} Tiers
 * @typedef {{id: string, root: string, state: string, fault: string | null}} Model
 * @typedef {{event: string, data: any}} ServerEvent
 */

const KEY = "flexi.key"; // in sessionStorage: it is gone with the tab

/** The visitor's key, or nothing. */
export const key = {
  get: () => sessionStorage.getItem(KEY) ?? "",
  set: (/** @type {string} */ value) => sessionStorage.setItem(KEY, value),
  forget: () => sessionStorage.removeItem(KEY),
};

/** An answer that is an error, or none at all: then its status is 0. */
export class ApiError extends Error {
  /**
   * @param {number} status
   * @param {{code?: string, message?: string, param?: string | null, request_id?: string}} error
   * @param {number | undefined} retryAfter  seconds
   */
  constructor(status, error, retryAfter = undefined) {
    super(error.message ?? "no answer");
    this.status = status;
    this.code = error.code ?? "no_answer";
    this.param = error.param ?? null;
    this.requestId = error.request_id ?? "";
    this.retryAfter = retryAfter;
  }

  /** Whatever was raised, as such an answer: the page's own fault where the server said nothing. @param {unknown} fault */
  static of(fault) {
    return fault instanceof ApiError ? fault : new ApiError(0, { code: "page_fault", message: String(fault) });
  }
}

/** The connection broke: nobody knows what became of the request. */
export class ConnectionLost extends ApiError {
  constructor() {
    super(0, { code: "connection_lost", message: "the connection to the server broke" });
  }
}

/**
 * @param {string} path  relative to the page, so that a server below a path works, too
 * @param {RequestInit & {id?: string}} options  id: the request's own, by which it can be cancelled
 * @returns {Promise<Response>} a good answer; raises ApiError
 */
export async function ask(path, { id, ...options } = {}) {
  const headers = new Headers(options.headers);
  if (key.get()) headers.set("Authorization", `Bearer ${key.get()}`);
  if (options.body) headers.set("Content-Type", "application/json");
  if (id) headers.set("X-Request-Id", id);
  const address = new URL(path, document.baseURI);
  const answer = await fetch(address, { ...options, headers, credentials: "omit" }).catch((fault) => {
    throw fault.name === "AbortError" ? fault : new ConnectionLost();
  });
  if (answer.ok) return answer;
  const body = await answer.json().catch(() => ({}));
  const wait = Number.parseInt(answer.headers.get("Retry-After") ?? "", 10);
  const error = body.error ?? { code: "not_understood", message: `the answer was ${answer.status} without a reason` };
  throw new ApiError(answer.status, error, Number.isNaN(wait) ? undefined : wait);
}

/** @param {string} path @param {RequestInit} options @returns {Promise<any>} */
export async function json(path, options = {}) {
  return (await ask(path, options)).json();
}

/**
 * The events of a stream as they come (WHATWG HTML, section 9.2). Raises ApiError for an error event, and ConnectionLost where
 * the stream breaks.
 * @param {Response} answer
 * @returns {AsyncGenerator<ServerEvent>}
 */
export async function* eventsOf(answer) {
  const reader = (answer.body ?? new ReadableStream()).pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { done, value } = await reader.read().catch((fault) => {
      throw fault.name === "AbortError" ? fault : new ConnectionLost();
    });
    if (done) return;
    const blocks = (rest + value).split("\n\n");
    rest = blocks.pop() ?? "";
    for (const block of blocks) {
      const data = JSON.parse(block.slice(block.indexOf("\ndata: ") + 7));
      if (data.type === "error") throw new ApiError(200, data.error);
      yield { event: data.type, data };
    }
  }
}
