// Effects of experiments' arms as they are written: a metric's value, and an interval.
import { macs } from "../format.js";

/** @typedef {import("./types.js").Interval} Interval */

const SHARES = ["errors", "abandoned", "unplanned_steps"];

/** @param {Interval} interval @param {string} metric @param {boolean} ratio */
export function span(interval, metric, ratio) {
  const write = (/** @type {number} */ value) => (ratio ? `×${value.toFixed(3)}` : figure(value, metric));
  return `${write(interval.estimate)} [${write(interval.low)}, ${write(interval.high)}]`;
}

/** @param {number} value @param {string} metric */
export function figure(value, metric) {
  if (SHARES.includes(metric)) return `${(100 * value).toFixed(2)} %`;
  if (metric === "macs") return macs(value);
  return String(Number(value.toPrecision(3)));
}
