// Numbers, times and strips as the console writes them.
import { counted, significant } from "../format.js";
import { html } from "../ui.js";

/** @typedef {import("./types.js").Figures} Figures */

/** @type {Record<string, "full" | "partial" | "null">} */
const KINDS = { F: "full", p: "partial", ".": "null" };

/** @param {number | null | undefined} value @param {(value: number) => string} write @returns {string} */
export function known(value, write) {
  return value === null || value === undefined || Number.isNaN(value) ? "–" : write(value);
}

/** @param {string} digest */
export const short = (digest) => digest.slice(0, 8);

/** @param {number} cost */
export const cost = (cost) => cost.toFixed(3);

/** @param {number} rfid */
export const rfid = (rfid) => (rfid < 0.095 ? String(Number(rfid.toPrecision(2))) : significant(rfid));

/** @param {number} decibels */
export const decibels = (decibels) => `${decibels.toFixed(1)} dB`;

/** @param {string | Date} when @returns {string} to the minute, where the reader is */
export function minute(when) {
  const date = new Date(when);
  const two = (/** @type {number} */ number) => String(number).padStart(2, "0");
  return `${date.getFullYear()}-${two(date.getMonth() + 1)}-${two(date.getDate())} ${two(date.getHours())}:${two(date.getMinutes())}`;
}

/** @param {Record<string, number>} steps */
export const stepsInWords = (steps) =>
  `${counted(steps.full ?? 0, "full step")}, ${steps.partial ?? 0} partial, ${steps.null ?? 0} null`;

/**
 * A schedule's steps as cells.
 * @param {{figures: Figures, marks?: number[] | null}} props  marks: steps to point at
 */
export function Cells({ figures, marks = null }) {
  const pointed = new Set(marks ?? []);
  return html`<div class=${marks ? "strip marked" : "strip"} role="img" aria-label=${stepsInWords(figures.steps)}>
    ${[...figures.strip].map((letter, i) => html`<i class=${`${KINDS[letter]}${pointed.has(i) ? " mark" : ""}`} />`)}
  </div>`;
}

/** @param {{when: string}} props */
export const When = ({ when }) => html`<time dateTime=${when} title=${when}>${minute(when)}</time>`;
