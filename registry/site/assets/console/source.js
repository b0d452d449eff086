// Where a console without a server has its documents from: the page itself.

/** @typedef {import("./types.js").Source} Source */

/** What a page that is a file says no with. */
class Refusal extends Error {
  /** @param {number} status @param {string} message */
  constructor(status, message) {
    super(message);
    this.status = status;
  }
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
      if (!(path in documents)) throw new Refusal(404, "This page does not hold that.");
      return /** @type {any} */ (documents[path]);
    },
    async act() {
      throw new Refusal(403, "This page is a copy: nothing can be done here.");
    },
    compares: (a, b) => `schedules/${a}/difference?to=${b}` in documents,
  };
}
