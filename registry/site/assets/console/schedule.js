// One schedule: its document, where it comes from, who vouches for it, and what differs from another one.
import { html, useState } from "../ui.js";
import { useAsked } from "./asking.js";
import { Dialog } from "./dialog.js";
import { Term } from "./term.js";
import { Cells, cost, decibels, known, rfid, short, stepsInWords } from "./words.js";

/** @typedef {import("./types.js").Source} Source */
/** @typedef {import("./types.js").Schedule} Schedule */
/** @typedef {import("./types.js").Difference} DifferenceDocument */
/** @typedef {import("./types.js").Version} Version */

/** @type {Record<string, import("./term.js").Word>} */
const TERMS = {
  "full steps": "full step",
  "partial steps": "partial step",
  "null steps": "null step",
  "relative cost": "relative cost",
  MACs: "MACs",
  rFID: "rFID",
  PSNR: "PSNR",
  accuracy: "accuracy",
};

/**
 * @param {{source: Source, query: string, digest: string, versions: Version[], close: () => void}} props
 *   query: what names the model; versions: those that it may be held against
 */
export function ScheduleDialog({ source, query, digest, versions, close }) {
  const { found, fault } = useAsked(source, `schedules/${digest}${query}`, 0);
  const schedule = /** @type {Schedule | null} */ (found);
  const [other, setOther] = useState("");
  const others = new Map(versions.filter((version) => version.figures && version.digest !== digest).map((v) => [v.digest, v]));
  const choices = [...others.values()].filter((version) => source.compares(version.digest, digest));
  return html`<${Dialog} title=${`Schedule ${short(digest)}`} close=${close} wide=${true}>
    ${fault && html`<p class="note bad" role="alert">${fault.message}</p>`}
    ${!schedule && !fault && html`<p class="soft">Reading …</p>`}
    ${
      schedule &&
      html`<div class="stack">
      <div class="stack tight">
        <${Cells} figures=${schedule.figures} />
        <p class="small soft">${stepsInWords(schedule.figures.steps)}, from noise to image; ${schedule.figures.solver}</p>
      </div>
      <dl class="facts">
        <div><dt><${Term} word="digest" /></dt><dd class="mono break">${schedule.digest}</dd></div>
        <div><dt><${Term} word="version" /></dt><dd>${schedule.versions.join(", ") || "–"}</dd></div>
        <div><dt><${Term} word="tier">tiers<//></dt><dd>${schedule.tiers.join(", ") || "none"}</dd></div>
        <div><dt><${Term} word="relative cost" /></dt><dd>${known(schedule.figures.relative_cost, cost)}</dd></div>
        <div><dt><${Term} word="rFID" /></dt><dd>${known(schedule.figures.rfid, rfid)}</dd></div>
        <div><dt><${Term} word="PSNR" /></dt><dd>${known(schedule.figures.psnr, decibels)}</dd></div>
        <div><dt><${Term} word="validated" /></dt><dd>${validatedAt(schedule)}</dd></div>
        <div><dt><${Term} word="signature" /></dt><dd class=${schedule.signature.state}>${schedule.signature.text}</dd></div>
      </dl>
      ${
        choices.length > 0 &&
        html`<div class="field">
        <label for="other">Compare with</label>
        <select id="other" value=${other} onChange=${(/** @type {any} */ event) => setOther(event.currentTarget.value)}>
          <option value="">nothing</option>
          ${choices.map((version) => html`<option key=${version.digest} value=${version.digest}>${named(version)}</option>`)}
        </select>
      </div>`
      }
      ${
        other &&
        html`<${DifferenceView} source=${source} query=${query} a=${other} b=${digest}
        names=${[named(others.get(other)), `this one, ${short(digest)}`]} />`
      }
      <details><summary>Provenance</summary><${Provenance} document=${schedule.document} /></details>
      <details><summary>Document</summary><pre class="document" tabindex="0">${JSON.stringify(schedule.document, null, 1)}</pre></details>
    </div>`
    }
  <//>`;
}

/** @param {Version | undefined} version */
export function named(version) {
  if (!version) return "";
  const figures = version.figures
    ? ` · cost ${known(version.figures.relative_cost, cost)} · rFID ${known(version.figures.rfid, rfid)}`
    : "";
  const tiers = version.tiers.length ? ` · ${version.tiers.join(", ")}` : "";
  return `version ${version.version}, ${short(version.digest)}${figures}${tiers}`;
}

/** @param {Schedule} schedule */
function validatedAt(schedule) {
  const { guidance, sizes } = schedule.figures;
  if (!guidance.length && !sizes.length) return "nowhere";
  return [guidance.length && `guidance ${guidance.join(", ")}`, sizes.length && sizes.join(", ")].filter(Boolean).join("; ");
}

/** @param {{document: Schedule["document"]}} props */
function Provenance({ document: { provenance } }) {
  const entries = Object.entries(provenance ?? {});
  if (!entries.length) return html`<p class="soft small">Its document does not say where it comes from.</p>`;
  return html`<dl class="facts">
    ${entries.map(([name, value]) => html`<div><dt>${name}</dt><dd class="break">${typeof value === "string" ? value : JSON.stringify(value)}</dd></div>`)}
  </dl>`;
}

/**
 * What changes from a to b.
 * @param {{source: Source, query: string, a: string, b: string, names: string[]}} props
 */
export function DifferenceView({ source, query, a, b, names }) {
  const path = `schedules/${a}/difference${query ? `${query}&` : "?"}to=${b}`;
  const { found, fault } = useAsked(source, path, 0);
  const difference = /** @type {DifferenceDocument | null} */ (found);
  if (fault) return html`<p class="note bad" role="alert">${fault.message}</p>`;
  if (!difference) return html`<p class="soft small">Comparing …</p>`;
  if (difference.same) return html`<p class="note">It is the same schedule.</p>`;
  const { steps } = difference;
  const figures = Object.entries(difference.figures).filter(([, [one, other]]) => one !== other);
  return html`<div class="stack tight difference">
    <div class="pair"><span class="small">${names[0]}</span><${Cells} figures=${difference.a} marks=${steps ?? []} /></div>
    <div class="pair"><span class="small">${names[1]}</span><${Cells} figures=${difference.b} marks=${steps ?? []} /></div>
    <p class="small soft">${steps ? `${steps.length} of ${difference.a.strip.length} steps differ.` : "Their steps do not line up."}</p>
    <table>
      <thead><tr><th scope="col">figure</th><th class="number" scope="col">from</th><th class="number" scope="col">to</th><th class="number" scope="col">change</th></tr></thead>
      <tbody>${figures.map(
        ([
          name,
          [one, other],
        ]) => html`<tr><th scope="row">${name in TERMS ? html`<${Term} word=${TERMS[name]}>${name}<//>` : name}</th>
        <td class="number">${known(one, number)}</td><td class="number">${known(other, number)}</td><td class="number">${change(one, other)}</td></tr>`,
      )}</tbody>
    </table>
    ${Object.entries(difference.fields).map(([name, [one, other]]) => html`<p class="small break"><b>${name}</b> ${brief(one)} → ${brief(other)}</p>`)}
  </div>`;
}

/** @param {number} value */
const number = (value) => (Number.isInteger(value) ? value.toLocaleString("en") : String(Number(value.toPrecision(4))));

/** @param {number | null} one @param {number | null} other */
function change(one, other) {
  if (one === null || other === null || one === other) return "";
  const by = other - one;
  return `${by > 0 ? "+" : "−"}${number(Math.abs(by))}${one ? ` (${by > 0 ? "+" : "−"}${Math.abs((100 * by) / one).toFixed(1)} %)` : ""}`;
}

/** @param {unknown} value */
function brief(value) {
  const text = value === null ? "none" : typeof value === "string" ? value : JSON.stringify(value);
  return text.length > 60 ? `${text.slice(0, 57)} …` : text;
}
