// A schedule drawn as what it is: a row of steps, each computed in full, in part, or not at all.
import { html } from "./ui.js";

/** @typedef {"full" | "partial" | "null"} Kind */
/** @typedef {{kind: Kind, branch: number}} Step  branch: of a partial step, else 0 */
/** @typedef {{solver: {teacher_steps: number}, segments: {partial?: number[], branch?: number}[]}} Schedule  what of it counts */

/**
 * The steps of a schedule's document, as `registry.schedule.Schedule.steps` has them.
 * @param {Schedule} schedule
 * @returns {Step[]}
 */
export function stepsOf(schedule) {
  const length = schedule.solver.teacher_steps / schedule.segments.length;
  return schedule.segments.flatMap(({ partial = [], branch = 1 }) =>
    Array.from({ length }, (_, offset) => {
      if (offset === 0) return { kind: /** @type {Kind} */ ("full"), branch: 0 };
      const computed = partial.includes(offset);
      return { kind: /** @type {Kind} */ (computed ? "partial" : "null"), branch: computed ? branch : 0 };
    }),
  );
}

/**
 * The same in a trajectory of `of` steps: what a solver of fewer steps jumps over is drawn as null steps are, so that strips of one
 * model can be compared.
 * @param {Step[]} steps
 * @param {number} of
 * @returns {Step[]}
 */
export function spread(steps, of) {
  if (steps.length >= of) return steps;
  const start = (/** @type {number} */ i) => Math.round((i * of) / steps.length);
  return steps.flatMap((step, i) => {
    const jumped = Array.from({ length: start(i + 1) - start(i) - 1 }, () => ({
      kind: /** @type {Kind} */ ("null"),
      branch: 0,
    }));
    return [step, ...jumped];
  });
}

/** @param {Step[]} steps @returns {string} */
export function inWords(steps) {
  const count = (/** @type {Kind} */ kind) => steps.filter((step) => step.kind === kind).length;
  return `${steps.length} steps: ${count("full")} full, ${count("partial")} partial, ${count("null")} null`;
}

/**
 * How many cells are behind once so many steps were computed: the null steps after a computed one are jumped over with it.
 * @param {Step[]} steps
 * @param {number} computed
 * @returns {number}
 */
export function cellsDone(steps, computed) {
  let seen = 0;
  const next = steps.findIndex((step) => step.kind !== "null" && ++seen > computed);
  return next < 0 ? steps.length : next;
}

/**
 * @param {{steps: Step[], of?: number | undefined, computed?: number | undefined, label?: string | undefined}} props  of: the steps of
 * the trajectory that it is compared with; computed: of a run that is under way, how many steps it has behind it; label: instead of
 * the counts
 */
export function Strip({ steps, of = 0, computed, label }) {
  const cells = spread(steps, of);
  const done = computed === undefined ? cells.length : cellsDone(cells, computed);
  return html`<div class=${computed === undefined ? "strip" : "strip filling"} role="img" aria-label=${label ?? inWords(steps)}>
    ${cells.map((step, i) => html`<i class=${i < done ? step.kind : `${step.kind} ahead`} />`)}
  </div>`;
}
