// What is asked before an experiment's share is raised, or the experiment ended.
import { html, useState } from "../ui.js";
import { ReasonDialog } from "./dialog.js";

/** @typedef {import("./types.js").Experiment} Experiment */
/** @typedef {import("./types.js").Report} Report */
/** @typedef {{source: import("./types.js").Source, query: string, again: () => Promise<void>}} Context */

/** @param {Context & {action: string, experiment: Experiment, report: Report | null, close: () => void, renew: () => Promise<void>}} props  experiment, report: as they were when the question was asked */
export function ExperimentAction({ action, experiment, report, close, renew, source, query, again }) {
  const [forced, setForced] = useState(/** @type {Report | null} */ (null)); // past which report's gate: a newer one asks anew
  const force = forced !== null && forced === report;
  const { declaration, name, version, transitions, stage } = experiment;
  const next = declaration.ramp[stage + 1];
  const gate = action === "ramp" ? report?.gate : null;
  const said = {
    ramp: `From ${experiment.share} % to ${next?.share ?? "?"} % of the units of ${declaration.tier}.`,
    stop: `It ends, and ${declaration.tier} serves everybody its own schedule. Its events stay.`,
    kill: `It ends because of harm: ${declaration.tier} serves everybody its own schedule, on every server within its watch interval.`,
  }[action];
  const verb = { ramp: next ? `Raise the share to ${next.share} %` : "Raise the share", stop: "Stop it", kill: "Kill it" }[
    action
  ];
  /** @param {string} reason */
  async function act(reason) {
    const body = { version, transitions, reason };
    await source.act(`experiments/${name}/${action}${query}`, action === "ramp" ? { ...body, force } : body);
    await again();
  }
  return html`<${ReasonDialog} title=${`${action[0]?.toUpperCase()}${action.slice(1)} ${name}`} verb=${verb} danger=${action !== "ramp"} close=${close}
    ready=${(action !== "ramp" || next) && (!gate || force)} act=${act} renew=${renew}>
    <p>${said}</p>
    ${action !== "ramp" && html`<p class="small soft">It is ${experiment.status} at ${experiment.share} % with ${declaration.arms.length} arms: ${declaration.arms.map((arm) => arm.name).join(", ")}.</p>`}
    ${
      gate &&
      html`<p class="note warn">The gate of this stage is not passed: ${gate}.</p>
      <label class="row"><input type="checkbox" checked=${force} onChange=${(/** @type {any} */ event) => setForced(event.currentTarget.checked ? report : null)} /> Go on all the same</label>`
    }
  <//>`;
}
