// The tiers, as cards to choose from: what each costs, how long it takes, which steps it computes.
import { macs, time, timesCheaper } from "./format.js";
import { AUTO } from "./request.js";
import { Strip } from "./strip.js";
import { html } from "./ui.js";

/** @typedef {import("./api.js").Tier} Tier */
/** @typedef {import("./strip.js").Step} Step */
/** @typedef {Record<string, Step[]>} Strips  by the schedule's digest */

/** How much less a tier costs than the original. @param {{tier: Tier}} props */
export function Gain({ tier }) {
  if (Math.abs(tier.relative_cost - 1) < 0.005) return html`<span class="gain original">the original</span>`;
  return html`<span class="gain"><b>${timesCheaper(tier.relative_cost)}</b> cheaper</span>`;
}

/** The steps of the dearest tier: the trajectory that strips are drawn in. @param {Tier[]} tiers @returns {number} */
export function wholeOf(tiers) {
  const steps = tiers.at(-1)?.steps;
  return steps ? steps.full + steps.partial + steps.null : 0;
}

/**
 * @param {{tiers: Tier[], strips: Strips, chosen: string, onChoose: (tier: string) => void}} props
 */
export function TierCards({ tiers, strips, chosen, onChoose }) {
  const card = (/** @type {string} */ name, /** @type {unknown} */ inside) => html`<label class="tier card" key=${name}>
    <input type="radio" name="tier" value=${name} checked=${chosen === name} onChange=${() => onChoose(name)} />
    <span class="tier-name">${name}</span>
    ${inside}
  </label>`;
  return html`<fieldset class="tiers">
    <legend class="unseen">Tier</legend>
    ${tiers.map((tier) =>
      card(
        tier.tier,
        html`<${Gain} tier=${tier} />
          ${strips[tier.digest] ? html`<${Strip} steps=${strips[tier.digest]} of=${wholeOf(tiers)} />` : html`<span class="strip" />`}
          <span class="tier-facts soft small">
            <span title="Multiply-accumulates of the UNet for one image">${macs(tier.macs)} MACs</span>
            <span>
              <span title="Predicted for one image under the present load">≈ ${time(tier.predicted_ms)}</span>
              ${tier.fidelity && html`<span title="How close its images are to the original's, as its search measured">, ${tier.fidelity.psnr.toFixed(0)} dB</span>`}
            </span>
          </span>`,
      ),
    )}
    ${card(
      AUTO,
      html`<span class="gain original">in time</span>
        <span class="tier-facts soft small">the highest quality, short of reference, that is predicted to meet your time limit</span>`,
    )}
  </fieldset>`;
}
