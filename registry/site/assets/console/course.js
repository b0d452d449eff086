// How an experiment's intervals came to be what they are: its primary metric's over time, for each arm but control.
import { html, useCallback, useMemo } from "../ui.js";
import { Chart, dressed } from "./chart.js";
import { span } from "./effects.js";
import { Term } from "./term.js";

/** @typedef {import("./types.js").Experiment} Experiment */
/** @typedef {import("./types.js").Report} Report */

/** @param {{experiment: Experiment, report: Report}} props */
export function Course({ experiment, report }) {
  const { arms, control } = experiment.declaration;
  const treatments = arms.map((arm) => arm.name).filter((name) => name !== control);
  return treatments.map((arm) => html`<${CourseOfArm} key=${arm} arm=${arm} experiment=${experiment} report=${report} />`);
}

/** @param {{arm: string, experiment: Experiment, report: Report}} props */
function CourseOfArm({ arm, experiment, report }) {
  const { primary } = experiment.declaration;
  const neutral = report.by_ratio ? 1 : 0;
  const points = useMemo(() => report.course.filter((point) => point.effect && point.arm === arm), [report, arm]);
  const data = useMemo(
    () =>
      /** @type {import("uplot").AlignedData} */ ([
        points.map((point) => new Date(point.time).getTime() / 1000),
        points.map((point) => point.effect?.estimate ?? null),
        points.map((point) => point.effect?.high ?? null),
        points.map((point) => point.effect?.low ?? null),
        points.map(() => neutral),
      ]),
    [points, neutral],
  );
  const options = useCallback(
    (/** @type {import("./chart.js").Palette} */ colours) =>
      /** @type {Omit<import("uplot").Options, "width" | "height">} */ ({
        scales: { y: { range: (_, low, high) => [Math.min(low, neutral) - 0.02, Math.max(high, neutral) + 0.02] } },
        series: [
          {},
          { stroke: colours.accent, width: 2, points: { show: true, size: 6, fill: colours.accent } },
          { stroke: colours.accent, width: 1, points: { show: false } },
          { stroke: colours.accent, width: 1, points: { show: false } },
          { stroke: colours.soft, width: 1, dash: [4, 4], points: { show: false } },
        ],
        bands: [{ series: [2, 3], fill: `color-mix(in srgb, ${colours.accent} 16%, transparent)` }],
        axes: [
          dressed(colours, {}),
          dressed(colours, { size: 56, label: report.by_ratio ? "ratio to control" : "difference" }),
        ],
        cursor: { show: false },
        padding: [12, 12, 0, 0],
      }),
    [neutral, report.by_ratio],
  );
  const last = points.at(-1);
  if (!last?.effect) {
    return html`<p class="small soft">The <${Term} word="confidence sequence">interval<//> of ${primary.metric.replaceAll("_", " ")} of ${arm} appears when it and control have 200 <${Term} word="unit">units<//>.</p>`;
  }
  const text = `${primary.metric.replaceAll("_", " ")} of ${arm}: ${span(last.effect, primary.metric, report.by_ratio)}`;
  return html`<figure class="stack tight">
    <figcaption class="small"><b>${text}</b> <span class="soft">over time; the band is its <${Term} word="confidence sequence" /></span></figcaption>
    <${Chart} data=${data} options=${options} height=${180} label=${`${text}, over ${points.length} times`} />
  </figure>`;
}
