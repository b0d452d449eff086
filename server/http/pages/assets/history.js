// What this browser remembers: the newest requests, with a small picture each. Nothing of it leaves the browser.

/** @typedef {import("./request.js").Wish} Wish */
/**
 * @typedef {{at: number, wish: Wish, tier: string, picture: string, started?: boolean}} Remembered  at: Unix time in
 *   milliseconds; started: from a picture, which is not kept
 */

const STORE = "flexi.history";
export const KEPT = 24;

/** @param {Wish} wish @param {string} tier @param {string} picture @returns {Remembered} of now */
export function entry(wish, tier, picture) {
  return { at: Date.now(), wish: { ...wish, image: null }, tier, picture, started: wish.image !== null };
}

/** @returns {Remembered[]} the newest first; none where the store is damaged or not to be had */
export function remembered() {
  try {
    const kept = JSON.parse(localStorage.getItem(STORE) ?? "[]");
    return Array.isArray(kept) ? kept.filter((one) => one?.wish?.tier && typeof one.picture === "string").slice(0, KEPT) : [];
  } catch {
    return [];
  }
}

/** @param {Remembered} one @returns {Remembered[]} */
export function remember(one) {
  const kept = [one, ...remembered()].slice(0, KEPT);
  while (kept.length > 0) {
    try {
      localStorage.setItem(STORE, JSON.stringify(kept));
      break;
    } catch {
      kept.pop(); // the browser's room is used up
    }
  }
  return kept;
}

/** Forget all of it. */
export function forget() {
  localStorage.removeItem(STORE);
}
