// uPlot in a component: as wide as its place, in the page's colours, drawn anew when either changes.
import { html, useEffect, useRef, useState } from "../ui.js";
import uPlot from "../vendor/uplot.js";

/** @typedef {import("uplot")} Plot */
/** @typedef {import("uplot").Options} Options */
/** @typedef {Record<"text" | "soft" | "line" | "accent" | "surface" | "page" | "full" | "partial" | "null" | "good" | "bad", string>} Palette */

const TOKENS = /** @type {const} */ ({
  text: "--text",
  soft: "--text-soft",
  line: "--line",
  accent: "--accent",
  surface: "--surface",
  page: "--page",
  full: "--full",
  partial: "--partial",
  null: "--null",
  good: "--good",
  bad: "--bad",
});
export const FONT = "12px system-ui, sans-serif";

/** @returns {Palette} the page's colours of now */
function palette() {
  const style = getComputedStyle(document.documentElement);
  const pairs = Object.entries(TOKENS).map(([name, token]) => [name, style.getPropertyValue(token).trim()]);
  return /** @type {Palette} */ (Object.fromEntries(pairs));
}

/** How often the colours changed. */
function useScheme() {
  const [count, setCount] = useState(0);
  useEffect(() => {
    const media = window.matchMedia("(prefers-color-scheme: dark)");
    const change = () => setCount((before) => before + 1);
    media.addEventListener("change", change);
    return () => media.removeEventListener("change", change);
  }, []);
  return count;
}

/** @param {Palette} colours @param {Partial<import("uplot").Axis>} axis @returns {import("uplot").Axis} */
export const dressed = (colours, axis) => ({
  stroke: colours.soft,
  font: FONT,
  labelFont: FONT,
  labelSize: 20,
  grid: { stroke: colours.line, width: 1 },
  ticks: { stroke: colours.line, width: 1, size: 4 },
  ...axis,
});

/**
 * @param {{data: import("uplot").AlignedData, height: number, label: string,
 *   options: (colours: Palette) => Omit<Options, "width" | "height">}} props  label: what a screen reader says instead of the
 *   picture; options: made anew where the data are others
 */
export function Chart({ data, height, label, options }) {
  const place = useRef(/** @type {HTMLDivElement | null} */ (null));
  const scheme = useScheme();
  useEffect(() => {
    const root = place.current;
    if (!root) return;
    const plot = new uPlot({ legend: { show: false }, ...options(palette()), width: root.clientWidth, height }, data, root);
    const observer = new ResizeObserver(() => {
      if (root.clientWidth && root.clientWidth !== plot.width) plot.setSize({ width: root.clientWidth, height });
    });
    observer.observe(root);
    return () => {
      observer.disconnect();
      plot.destroy();
    };
  }, [data, height, options, scheme]);
  return html`<div class="chart" role="img" aria-label=${label} ref=${place} style=${{ height: `${height}px` }} />`;
}
