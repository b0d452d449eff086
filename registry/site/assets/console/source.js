// Where the console has its documents from: the routes of operators, or what a static page holds in itself.

/** @typedef {import("./types.js").Source} Source */

/** What a server, or the way to it, says no with. */
export class Refusal extends Error {
  /** @param {number} status 0 where no answer came @param {string} code @param {string} message */
  constructor(status, code, message) {
    super(message);
    this.status = status;
    this.code = code;
  }
}

/**
 * A running server. The key is sent in a header, and lives in this tab only.
 * @param {() => string} key
 * @returns {Source}
 */
export function server(key) {
  /** @param {string} path @param {RequestInit} options @returns {Promise<any>} */
  async function ask(path, options) {
    const headers = new Headers(options.headers);
    if (key()) headers.set("Authorization", `Bearer ${key()}`);
    let answer;
    try {
      answer = await fetch(`v1/operator${path && `/${path}`}`, {
        ...options,
        headers,
        cache: "no-store",
        credentials: "omit",
      });
    } catch {
      throw new Refusal(0, "away", "The server does not answer.");
    }
    const said = await answer.json().catch(() => null);
    if (answer.ok && said) return said;
    const { code = "unknown", message = `status ${answer.status}` } = said?.error ?? {};
    throw new Refusal(answer.status, code, message);
  }
  return {
    live: true,
    get: (path) => ask(path, {}),
    act: (path, body) =>
      ask(path, { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) }),
    compares: () => true,
  };
}

/**
 * A page that holds its documents: nothing can be asked again, and nothing be done.
 * @param {Record<string, unknown>} documents by the paths that a server would have them under
 * @returns {Source}
 */
export function embedded(documents) {
  return {
    live: false,
    async get(path) {
      if (!(path in documents)) throw new Refusal(404, "not_found", "This page does not hold that.");
      return /** @type {any} */ (documents[path]);
    },
    async act() {
      throw new Refusal(403, "forbidden", "This page is a copy: nothing can be done here.");
    },
    compares: (a, b) => path(a, b) in documents,
  };
  /** @param {string} a @param {string} b */
  function path(a, b) {
    return `schedules/${a}/difference?to=${b}`;
  }
}
