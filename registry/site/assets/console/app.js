// The console: what the registry says and the server does, on one page.
import { html, useCallback, useMemo, useState } from "../ui.js";
import { useAsked } from "./asking.js";
import { Experiments } from "./experiments.js";
import { FrontChart, Versions } from "./front.js";
import { LiveView } from "./live.js";
import { ScheduleDialog } from "./schedule.js";
import { Term } from "./term.js";
import { Tiers } from "./tiers.js";

/** @typedef {import("./types.js").Source} Source */
/** @typedef {import("./types.js").Refusal} Refusal */

const SECONDS = 5; // between two looks at the registry

/**
 * @param {{source: Source, model: string, several: boolean, mayAct: boolean, children?: import("../ui.js").Children}} props
 *   model: whose part of the registry is shown; children: what else there is, below
 */
export function Console({ source, model, several, mayAct, children }) {
  const query = several && source.live ? `?model=${encodeURIComponent(model)}` : "";
  const [digest, setDigest] = useState("");
  const front = useAsked(source, `front${query}`, SECONDS);
  const tiers = useAsked(source, `tiers${query}`, SECONDS);
  const experiments = useAsked(source, `experiments${query}`, SECONDS);
  const versions = useMemo(() => /** @type {import("./types.js").Front | null} */ (front.found)?.versions ?? [], [front.found]);
  const open = useCallback((/** @type {string} */ wanted) => setDigest(wanted), []);
  const again = useCallback(async () => {
    await Promise.all([front.again(), tiers.again(), experiments.again()]);
  }, [front.again, tiers.again, experiments.again]);
  const context = { source, query, versions, mayAct, again, open };
  return html`<div class="console">
    ${source.live && html`<${LiveView} source=${source} />`}
    <div class="columns">
      <section class="stack" aria-labelledby="front">
        <h2 id="front"><${Term} word="front">Front<//> of ${model}</h2>
        <${Fault} fault=${front.fault} />
        ${front.found && html`<${FrontChart} front=${front.found} open=${open} />`}
        <h3><${Term} word="version">Versions<//></h3>
        ${front.found && html`<${Versions} front=${front.found} open=${open} />`}
      </section>
      <section class="stack" aria-labelledby="tiers">
        <h2 id="tiers"><${Term} word="tier">Tiers<//></h2>
        <${Fault} fault=${tiers.fault} />
        ${tiers.found && html`<${Tiers} tiers=${tiers.found} ...${context} />`}
      </section>
    </div>
    <section class="stack" aria-labelledby="experiments">
      <h2 id="experiments"><${Term} word="experiment">Experiments<//></h2>
      <${Fault} fault=${experiments.fault} />
      ${experiments.found && html`<${Experiments} experiments=${experiments.found} ...${context} />`}
    </section>
    ${children}
    ${digest && html`<${ScheduleDialog} key=${digest} source=${source} query=${query} digest=${digest} versions=${versions} close=${() => setDigest("")} />`}
  </div>`;
}

/** @param {{fault: Refusal | null}} props */
function Fault({ fault }) {
  return fault && html`<p class="note bad" role="status">${fault.message}</p>`;
}
