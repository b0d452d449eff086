// A tier's candidate: which schedule it is, and what it made of the same prompts and noise as the tier's own.
import { counted } from "../format.js";
import { html } from "../ui.js";
import { useAsked } from "./asking.js";
import { figure, span } from "./effects.js";
import { Term } from "./term.js";
import { rfid, short, When } from "./words.js";

/** @typedef {import("./types.js").Source} Source */
/** @typedef {import("./types.js").Candidate} CandidateDocument */
/** @typedef {import("./types.js").Shadow} Shadow */
/** @typedef {import("./types.js").Pair} Pair */

const REPORT_SECONDS = 60;
/** @type {Record<string, string>} */
const NAMES = {
  psnr: "PSNR, dB",
  feature_distance: "feature distance",
  macs: "MACs of an image",
  seconds: "seconds of an image",
};

/** @param {{source: Source, query: string, shown: CandidateDocument, refused: string | null, open: (digest: string) => void}} props  refused: why it makes no image on this server */
export function Candidate({ source, query, shown, refused, open }) {
  const { candidate, status } = shown;
  const runs = status === "running";
  const { found, fault } = useAsked(
    source,
    source.live ? `tiers/${candidate.tier}/shadow${query}` : null,
    runs ? REPORT_SECONDS : 0,
  );
  const report = /** @type {Shadow | null} */ (found)?.report ?? null;
  return html`<section class="stack tight" aria-label=${`Candidate of ${candidate.tier}`}>
    <p class="small figures">
      <b><${Term} word="candidate">Candidate<//></b>
      <span class=${`chip ${status}`}>${status}</span>
      <button type="button" class="quiet link mono" aria-label=${`Schedule ${short(candidate.digest)}, candidate of ${candidate.tier}`} onClick=${() => open(candidate.digest)}>${short(candidate.digest)}</button>
      <span>version ${candidate.version}</span>
      ${runs && html`<span>${Number((100 * candidate.share).toPrecision(3))} % of the images, until <${When} when=${candidate.until} /></span>`}
      <span class="soft">${shown.author}${shown.reason && `: ${shown.reason}`}</span>
    </p>
    ${runs && refused && html`<p class="note warn small">This server makes no image by it: ${refused}.</p>`}
    ${fault && html`<p class="note warn small" role="status">${fault.message}</p>`}
    ${report && html`<p class="small">${report.said}</p>`}
    ${report?.pairs.map((pair) => html`<${Figures} key=${pair.digest} tier=${candidate.tier} pair=${pair} now=${report.meant?.digest === pair.digest} />`)}
  </section>`;
}

/** @param {{tier: string, pair: Pair, now: boolean}} props */
function Figures({ tier, pair, now }) {
  const whose = `${now ? "now" : "earlier"}, ${short(pair.digest)}`;
  return html`<div class="scroll" role="region" aria-label=${`Candidate of ${tier} against ${whose}`} tabindex="0"><table class="small">
    <caption class="soft"><${Term} word="pair">${counted(pair.images, "pair")}<//> of ${counted(pair.requests, "request")}${pair.failed ? `, ${pair.failed} failed` : ""}</caption>
    <thead><tr><th scope="col">metric</th><th class="number" scope="col">${whose}</th><th class="number" scope="col">candidate</th>
      <th class="number" scope="col"><${Term} word="confidence sequence">effect, surely within<//></th></tr></thead>
    <tbody>${pair.figures.map(
      (one) => html`<tr><th scope="row">${NAMES[one.figure] ?? one.figure}</th>
      <td class="number">${figure(one.active, one.figure)}</td><td class="number">${figure(one.candidate, one.figure)}</td>
      <td class="number">${one.effect ? span(one.effect, one.figure, one.by === "ratio") : "too few yet"}</td></tr>`,
    )}
    ${
      pair.rfid &&
      html`<tr><th scope="row"><${Term} word="rFID">running rFID<//></th><td class="number">${rfid(pair.rfid.active)}</td>
      <td class="number">${rfid(pair.rfid.candidate)}</td><td class="number"></td></tr>`
    }</tbody>
  </table></div>`;
}
