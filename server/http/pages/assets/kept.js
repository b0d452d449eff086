// The history, to see and to go on from.
import { KEPT } from "./history.js";
import { html } from "./ui.js";

/** @typedef {import("./request.js").Wish} Wish */

/**
 * @param {{kept: import("./history.js").Remembered[], models: string[], busy: boolean, onAgain: (wish: Wish, tier: string) => void,
 *   onForget: () => void}} props  models: that the server has
 */
export function Kept({ kept, models, busy, onAgain, onForget }) {
  if (kept.length === 0) return null;
  return html`<section class="stack tight" aria-label="History">
    <div class="row spread">
      <h2>History</h2>
      <button type="button" class="quiet" onClick=${onForget}>Clear</button>
    </div>
    <ul class="kept">
      ${kept.map(({ at, wish, tier, picture, started }) => {
        const away = wish.model !== "" && !models.includes(wish.model);
        const but = away ? `: ${wish.model} is not here` : started ? ", without its picture" : "";
        return html`<li key=${at}>
          <button type="button" disabled=${busy || away} title=${`Same again${but}`} onClick=${() => onAgain(wish, tier)}>
            <img src=${picture} alt="" />
            <span class="small">${wish.prompt || "an image"}<span class="soft">${tier}, seed ${wish.seed}${but}</span></span>
            <span class="unseen">: same again</span>
          </button>
        </li>`;
      })}
    </ul>
    <p class="soft small">
      Your last ${KEPT} requests, with their prompts, settings and a small picture each: in this browser's storage only, until you clear it.
    </p>
  </section>`;
}
