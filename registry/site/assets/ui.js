// Preact and htm, bound to each other: what every page builds its view with.
import htm from "./vendor/htm.js";
import { h } from "./vendor/preact.js";

export * from "./vendor/hooks.js";
export { Fragment, render } from "./vendor/preact.js";

/** @typedef {import("./vendor/preact.js").VNode} VNode */
/** @typedef {import("./vendor/preact.js").ComponentChildren} Children */

/** A template of HTML becomes what Preact renders. One root: several are a Fragment. */
export const html = /** @type {(strings: TemplateStringsArray, ...values: any[]) => VNode} */ (htm.bind(h));
