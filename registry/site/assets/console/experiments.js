// Experiments: what each splits, what its arms did, how sure that is, and raising its share or ending it.
import { html, useState } from "../ui.js";
import { useAsked } from "./asking.js";
import { Course } from "./course.js";
import { figure, span } from "./effects.js";
import { ExperimentAction } from "./experiment_action.js";
import { Term } from "./term.js";
import { known, rfid, short, When } from "./words.js";

/** @typedef {import("./types.js").Source} Source */
/** @typedef {import("./types.js").Experiment} Experiment */
/** @typedef {import("./types.js").Experiments} ExperimentsDocument */
/** @typedef {import("./types.js").Report} Report */
/** @typedef {{action: string, experiment: Experiment, report: Report | null}} Asking  as all was when the question was asked */
/** @typedef {{source: Source, query: string, mayAct: boolean, again: () => Promise<void>, open: (digest: string) => void}} Context */

const REPORT_SECONDS = 60;
const OPEN = ["draft", "running", "paused"]; // what can still be ended
const RATIOS = ["queue_seconds", "service_seconds", "macs", "feature_distance"];

/** @param {Context & {experiments: ExperimentsDocument}} props */
export function Experiments({ experiments, ...context }) {
  const [asking, setAsking] = useState(/** @type {Asking | null} */ (null));
  const renew = async () => {
    if (!asking) return;
    const { source, query } = context;
    const { name } = asking.experiment;
    const { experiments } = /** @type {ExperimentsDocument} */ (await source.get(`experiments${query}`));
    const experiment = experiments.find((one) => one.name === name);
    if (!experiment) throw new Error(`There is no experiment ${name} any more.`);
    const report = asking.report && /** @type {Report} */ (await source.get(`experiments/${name}/report${query}`));
    setAsking({ ...asking, experiment, report });
    await context.again();
  };
  const rank = (/** @type {Experiment} */ one) => ["running", "paused", "draft"].indexOf(one.status) % 4;
  const sorted = [...experiments.experiments].sort(
    (a, b) => ((rank(a) + 4) % 4) - ((rank(b) + 4) % 4) || newest(b) - newest(a),
  );
  if (!sorted.length && !experiments.faults.length) {
    return html`<p class="note">No experiment is declared: python -m server.experiments declare does that.</p>`;
  }
  return html`<div class="stack">
    ${experiments.faults.map((fault) => html`<p class="note bad">${fault}</p>`)}
    ${sorted.map((one) => html`<${ExperimentCard} key=${one.name} experiment=${one} ask=${setAsking} ...${context} />`)}
    ${asking && html`<${ExperimentAction} ...${asking} close=${() => setAsking(null)} renew=${renew} ...${context} />`}
  </div>`;
}

/** @param {Experiment} experiment */
const newest = (experiment) => new Date(experiment.history[0]?.time ?? 0).getTime();

/** @param {Context & {experiment: Experiment, ask: (asking: Asking) => void}} props */
function ExperimentCard({ experiment, ask, ...context }) {
  const [wanted, setWanted] = useState(false);
  const { declaration, status } = experiment;
  const runs = status === "running" || status === "paused";
  const asked = context.source.live && (runs || wanted) && status !== "draft";
  const { found, fault } = useAsked(
    context.source,
    asked ? `experiments/${experiment.name}/report${context.query}` : null,
    runs ? REPORT_SECONDS : 0,
  );
  const report = /** @type {Report | null} */ (found);
  const ends = context.mayAct && OPEN.includes(status);
  const ended = !OPEN.includes(status);
  const rest = html`<div class="halves">
      <div class="stack tight">
        <${Ramp} experiment=${experiment} gate=${report?.gate ?? null} />
        <${Arms} experiment=${experiment} report=${report} open=${context.open} />
        <${Guardrails} experiment=${experiment} report=${report} />
      </div>
      <div class="stack tight">
        ${report && html`<${Course} experiment=${experiment} report=${report} />`}
        ${report && html`<${Comparisons} experiment=${experiment} report=${report} />`}
        ${report && html`<p class="small soft">Of ${report.events.toLocaleString("en")} <${Term} word="event">events<//>, computed <${When} when=${report.time} />${report.damaged.length ? `; left out: ${report.damaged.join("; ")}` : ""}.</p>`}
        ${!report && !fault && asked && html`<p class="soft small">The report is computed …</p>`}
      </div>
    </div>`;
  return html`<article class="card experiment" aria-label=${`Experiment ${experiment.name}`}>
    <div class="row spread">
      <h3>${experiment.name} <span class="soft">version ${experiment.version}</span> <span class=${`chip ${status}`}>${status.replace("_", " ")}</span></h3>
      ${
        ends &&
        html`<span class="row">
        <button type="button" disabled=${status !== "running" || experiment.stage + 1 >= declaration.ramp.length} onClick=${() => ask({ action: "ramp", experiment, report })}>Ramp …</button>
        <button type="button" onClick=${() => ask({ action: "stop", experiment, report })}>Stop …</button>
        <button type="button" class="danger" onClick=${() => ask({ action: "kill", experiment, report })}>Kill …</button>
      </span>`
      }
    </div>
    <p class="soft">${declaration.hypothesis}</p>
    ${report && html`<p class=${`note ${tone(report.report.verdict.outcome)}`}><${Term} word="verdict" />: <b>${report.report.verdict.outcome.replaceAll("_", " ")}</b>. ${report.report.verdict.reason}</p>`}
    ${fault && html`<p class="note warn" role="status">${fault.message}</p>`}
    ${
      ended
        ? html`<details onToggle=${(/** @type {any} */ event) => setWanted(event.currentTarget.open)}><summary class="small">Arms, guardrails and report</summary>${rest}</details>`
        : rest
    }
    <details><summary class="small">History: ${experiment.history.length}</summary><ol class="history small">
      ${experiment.history.map((entry) => html`<li><b>${entry.action.replace("_", " ")}</b> → ${entry.status.replace("_", " ")}, <${When} when=${entry.time} />, ${entry.author}${entry.reason && html`<span class="soft">: ${entry.reason}</span>`}</li>`)}
    </ol></details>
  </article>`;
}

/** @param {string} outcome */
function tone(outcome) {
  if (outcome.startsWith("ship")) return "good";
  return outcome === "collecting" ? "" : "warn";
}

/** @param {{experiment: Experiment, gate: string | null}} props */
function Ramp({ experiment, gate }) {
  const { ramp, tier, end } = experiment.declaration;
  const runs = experiment.status === "running";
  return html`<div class="stack tight">
    <ol class="ramp" aria-label="Ramp">
      ${ramp.map((stage, i) => html`<li class=${i < experiment.stage ? "past" : i === experiment.stage ? (runs ? "now" : "past") : ""} aria-current=${i === experiment.stage ? "step" : null}>${stage.share} %</li>`)}
    </ol>
    <p class="small soft"><${Term} word="ramp" />: ${runs ? `${experiment.share} % of ${tier}’s units are enrolled` : `of the tier ${tier}`}; ends <${When} when=${end} />.
      ${gate && html` The next stage waits: ${gate}.`}</p>
  </div>`;
}

/** @param {{experiment: Experiment, report: Report | null, open: (digest: string) => void}} props */
function Arms({ experiment, report, open }) {
  const { arms, control } = experiment.declaration;
  const did = report && new Map(report.report.arms.map((arm) => [arm.name, arm]));
  return html`<div class="scroll" role="region" aria-label=${`Arms of ${experiment.name}`} tabindex="0"><table>
    <thead><tr><th scope="col"><${Term} word="arm" /></th><th scope="col"><${Term} word="schedule" /></th><th class="number" scope="col">weight</th>
      ${
        did &&
        html`<th class="number" scope="col"><${Term} word="unit">units<//></th><th class="number" scope="col">requests</th>
      <th class="number" scope="col"><${Term} word="p95">service p95<//></th><th class="number" scope="col"><${Term} word="rFID" /></th>`
      }</tr></thead>
    <tbody>${arms.map(
      (arm) => html`<tr>
      <th scope="row">${arm.name}${arm.name === control && html`<span class="soft"> (control)</span>`}</th>
      <td><button type="button" class="quiet link mono" aria-label=${`Schedule ${short(arm.digest)} of ${arm.name}`} onClick=${() => open(arm.digest)}>${short(arm.digest)}</button></td>
      <td class="number">${arm.weight}</td>
      ${
        did &&
        html`<td class="number">${known(did.get(arm.name)?.units, String)}</td>
      <td class="number">${known(did.get(arm.name)?.requests, String)}</td>
      <td class="number">${known(did.get(arm.name)?.service_p95, (value) => `${value.toPrecision(3)} s`)}</td>
      <td class="number">${known(did.get(arm.name)?.rfid, rfid)}</td>`
      }</tr>`,
    )}</tbody>
  </table></div>`;
}

/** @param {{experiment: Experiment, report: Report | null}} props */
function Guardrails({ experiment, report }) {
  const { guardrails } = experiment.declaration;
  if (!guardrails.length) return html`<p class="small soft"><${Term} word="guardrail">Guardrails<//>: none.</p>`;
  return html`<ul class="plain small" aria-label=${`Guardrails of ${experiment.name}`}>
    ${guardrails.map((rail) => {
      const trip = tripOf(rail, experiment);
      return html`<li class=${trip ? "bad" : ""}><${Term} word="guardrail" />: ${rail.metric} by ${rail.compare} at most ${rail.limit}
      ${seen(rail, report)}${trip && html`; tripped at ${String(trip.seen)}`}</li>`;
    })}
  </ul>`;
}

/**
 * The evidence by which this guardrail ended the version shown. The history is of all versions, and ramps have evidence, too.
 * @param {import("./types.js").Guardrail} rail @param {Experiment} experiment
 */
function tripOf(rail, { history, version }) {
  const end = history.find((entry) => entry.action === "roll_back" && entry.version === version);
  const { metric, compare, limit } = end?.evidence ?? {};
  return metric === rail.metric && compare === rail.compare && limit === rail.limit ? end?.evidence : null;
}

/** @param {import("./types.js").Guardrail} rail @param {Report | null} report */
function seen(rail, report) {
  const { arms, comparisons } = report?.report ?? { arms: [], comparisons: [] };
  const spans = comparisons.flatMap((one) => {
    if (one.metric !== rail.metric) return [];
    const interval = rail.compare === "ratio" ? one.ratio : rail.compare === "difference" ? one.difference : null;
    const arm = arms.length > 2 ? `${one.arm}: ` : "";
    return interval ? [`${arm}${span(interval, rail.metric, rail.compare === "ratio")}`] : [];
  });
  return spans.length ? html`<span class="soft"> (now ${spans.join("; ")})</span>` : "";
}

/** @param {{experiment: Experiment, report: Report}} props */
function Comparisons({ experiment, report }) {
  const shown = report.report.comparisons.filter((one) => one.value !== null && one.control !== null);
  if (!shown.length) return null;
  return html`<div class="scroll" role="region" aria-label=${`Arms of ${experiment.name} against control`} tabindex="0"><table>
    <thead><tr><th scope="col">metric</th><th class="number" scope="col">control</th><th class="number" scope="col"><${Term} word="arm" /></th>
      <th class="number" scope="col"><${Term} word="confidence sequence">effect, surely within<//></th></tr></thead>
    <tbody>${shown.map(
      (
        one,
      ) => html`<tr><th scope="row">${one.metric.replaceAll("_", " ")}${report.report.arms.length > 2 ? ` of ${one.arm}` : ""}</th>
      <td class="number">${known(one.control, (value) => figure(value, one.metric))}</td><td class="number">${known(one.value, (value) => figure(value, one.metric))}</td>
      <td class="number">${effect(one)}</td></tr>`,
    )}</tbody>
  </table></div>`;
}

/** @param {import("./types.js").Comparison} one */
function effect(one) {
  const ratio = RATIOS.includes(one.metric);
  const interval = ratio ? one.ratio : one.difference;
  return interval ? span(interval, one.metric, ratio) : "too few yet";
}
