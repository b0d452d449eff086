// Numbers as people read them. The same words everywhere: MACs, steps, seconds.

const PREFIXES = ["", "k", "M", "G", "T", "P"];

/** @param {number} macs @returns {string} such as "1.68 G" */
export function macs(macs) {
  const power = macs < 1000 ? 0 : Math.min(Math.floor(Math.log10(macs) / 3), PREFIXES.length - 1);
  return `${significant(macs / 1000 ** power)} ${PREFIXES[power]}`.trim();
}

/** @param {number} milliseconds @returns {string} such as "371 ms" or "3.5 s" */
export function time(milliseconds) {
  if (milliseconds < 999.5) return `${Math.round(milliseconds)} ms`;
  return milliseconds < 99_950 ? `${(milliseconds / 1000).toFixed(1)} s` : `${Math.round(milliseconds / 60_000)} min`;
}

/** @param {number} share @returns {string} such as "12 %" or "0.4 %" */
export function percent(share) {
  return `${share > 0 && share < 0.00995 ? (share * 100).toFixed(1) : Math.round(share * 100)} %`;
}

/** @param {number} cost relative to the teacher @returns {string} such as "12×"; how many times cheaper */
export function timesCheaper(cost) {
  const times = 1 / cost;
  return `${times < 9.95 ? times.toFixed(1).replace(/\.0$/, "") : Math.round(times)}×`;
}

/** @param {number} value @returns {string} with three digits that count */
export function significant(value) {
  return value >= 99.95 ? String(Math.round(value)) : value >= 9.995 ? value.toFixed(1) : value.toFixed(2);
}

/** @param {number} count @param {string} noun @returns {string} such as "1 step" or "2 steps" */
export function counted(count, noun) {
  return `${count} ${noun}${count === 1 ? "" : "s"}`;
}
