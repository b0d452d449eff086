// What a visitor sees at first: what tiers are, and a place for all of their images.
import { percent, time } from "./format.js";
import { Strip } from "./strip.js";
import { Gain, wholeOf } from "./tiers.js";
import { html } from "./ui.js";

/** @typedef {import("./api.js").Tiers} Tiers */
/** @typedef {import("./tiers.js").Strips} Strips */

/** @param {{tiers?: Tiers, choice?: any, children?: any}} props  choice: of the model */
export function Shell({ tiers, choice, children }) {
  const cheapest = tiers?.tiers[0];
  const dearest = tiers?.tiers.at(-1);
  return html`<div class="stack">
    <div class="lede">
      <div>
      <h1>Same model, same seed, a fraction of the work</h1>
      <p class="soft">
        A tier says for each denoising step whether it is computed in <span class="key full">full</span>, in${" "}
        <span class="key partial">part</span>, with features of an earlier step, or <span class="key">not at all</span>.
        ${
          cheapest &&
          dearest &&
          cheapest !== dearest &&
          html`${" "}Here <b>${cheapest.tier}</b> takes ${percent(cheapest.relative_cost)} of the work of <b>${dearest.tier}</b>.`
        }
      </p>
      </div>
      ${choice}
    </div>
    ${children}
  </div>`;
}

/** What Compare will fill. @param {{tiers: Tiers, strips: Strips, subject: string, disabled: boolean, onCompare: () => void}} props */
export function Empty({ tiers, strips, subject, disabled, onCompare }) {
  const all = tiers.tiers.reduce((sum, tier) => sum + tier.predicted_ms, 0);
  return html`<section class="stack nothing" aria-label="Nothing drawn yet">
    <h2 class="unseen">All tiers, not drawn yet</h2>
    <div class="compared">
      ${tiers.tiers.map(
        (tier) => html`<div class="card compared-one blank" key=${tier.tier}>
          <div class="frame" />
          <div class="stack tight caption">
            <div><h3>${tier.tier}</h3><${Gain} tier=${tier} /></div>
            ${strips[tier.digest] && html`<${Strip} steps=${strips[tier.digest]} of=${wholeOf(tiers.tiers)} />`}
          </div>
        </div>`,
      )}
    </div>
    <div class="row">
      <button type="button" class="primary" disabled=${disabled} onClick=${onCompare}>
        See ${subject ? `“${subject}”` : "one seed"} with all ${tiers.tiers.length} tiers
      </button>
      <span class="soft small">takes about ${time(all)} on this server, as it is now</span>
    </div>
  </section>`;
}
