// One prompt and one seed with all tiers, side by side, and two of the images under a slider.
import { macs, time } from "./format.js";
import { pixelsOf, psnr } from "./pixels.js";
import { CopyAs, Frame, fileName, Progress, Unmet } from "./result.js";
import { isUnderWay, tierOf } from "./run.js";
import { Gain, wholeOf } from "./tiers.js";
import { html, useEffect, useState } from "./ui.js";

/** @typedef {import("./run.js").Run} Run */
/** @typedef {import("./api.js").Tier} Tier */
/** @typedef {import("./tiers.js").Strips} Strips */

/**
 * How close each finished image is to the dearest tier's, in dB, as soon as that is there.
 * @param {Run[]} runs  the dearest last
 * @returns {Record<string, number>} by the run's id
 */
function useFidelity(runs) {
  const [known, setKnown] = useState(/** @type {Record<string, number>} */ ({}));
  const last = runs.at(-1);
  const ready = last?.state === "done" ? last.pictures[0]?.url : undefined;
  useEffect(() => {
    setKnown({});
    if (!ready) return;
    let wanted = true;
    const compare = async () => {
      const original = await pixelsOf(ready);
      const others = runs.slice(0, -1).filter((run) => run.state === "done");
      const values = await Promise.all(
        others.map(async (run) => [run.id, psnr(await pixelsOf(run.pictures[0]?.url ?? ""), original)]),
      );
      if (wanted) setKnown(Object.fromEntries(values));
    };
    compare();
    return () => {
      wanted = false;
    };
  }, [ready]);
  return known;
}

/**
 * @param {{runs: Run[], strips: Strips, withKey: boolean, onCancel: () => void,
 *   onAgain: (wish: import("./request.js").Wish) => void, say: (text: string) => void}} props
 */
export function Comparison({ runs, strips, withKey, onCancel, onAgain, say }) {
  const [picked, pick] = useState(runs[0]?.wish.tier ?? "");
  const fidelity = useFidelity(runs);
  const done = runs.filter((run) => run.state === "done");
  const chosen = /** @type {Run} */ (runs.find((run) => run.wish.tier === picked) ?? runs[0]);
  const busy = runs.some(isUnderWay);
  const subject = runs[0]?.wish.prompt || "an image";
  return html`<section class="stack" aria-label="Comparison">
    <div class="row spread">
      <h2>${subject}, seed ${runs[0]?.wish.seed}, with every tier</h2>
      ${busy && html`<button type="button" class="danger" onClick=${onCancel}>Cancel</button>`}
    </div>
    <div class="compared">
      ${runs.map((run) => {
        const tier = /** @type {Tier} */ (tierOf(run));
        const picture = /** @type {import("./run.js").Picture} */ (run.pictures[0]);
        const db = fidelity[run.id];
        return html`<figure class="card compared-one" key=${run.id}>
          <${Frame} run=${run} picture=${picture} alt=${`${subject}, with ${tier.tier}`} />
          <figcaption class="stack tight">
            <div><h3>${tier.tier}</h3><${Gain} tier=${tier} /></div>
            <${Progress} run=${run} picture=${picture} strips=${strips} whole=${wholeOf(run.offered)} name=${`Steps of ${tier.tier}`} />
            <dl class="compared-facts small">
              <div><dt>MACs</dt><dd>${macs(run.plan?.macs ?? tier.macs)}</dd></div>
              <div><dt>Took</dt><dd>${run.state === "done" ? time(run.milliseconds) : "–"}</dd></div>
              <div><dt>PSNR</dt><dd>${db === undefined ? "–" : db === Number.POSITIVE_INFINITY ? "identical" : `${db.toFixed(1)} dB`}</dd></div>
            </dl>
            <${Unmet} run=${run} />
            ${
              run.state === "done" &&
              html`<a class="small" href=${picture.url} download=${fileName(run.wish, picture, tier.tier)} aria-label=${`Download ${tier.tier}`}>Download</a>`
            }
          </figcaption>
        </figure>`;
      })}
    </div>
    <p class="soft small">
      Drawn one after the other, the cheapest first. PSNR is against ${runs.at(-1)?.wish.tier}, over the pixels: the higher, the closer.
    </p>
    ${done.length > 1 && !busy && html`<${Wipe} runs=${done} />`}
    ${
      !busy &&
      html`<div class="row">
        <select class="picked" aria-label="Tier to go on with" value=${picked} onChange=${(/** @type {any} */ event) => pick(event.target.value)}>
          ${runs.map(({ wish }) => html`<option value=${wish.tier}>${wish.tier}</option>`)}
        </select>
        <button type="button" onClick=${() => onAgain(chosen.wish)}>Same again</button>
        <${CopyAs} key=${picked} wish=${chosen.wish} withKey=${withKey} say=${say} />
      </div>`
    }
  </section>`;
}

/** Two images over each other; the slider says where one ends and the other begins. @param {{runs: Run[]}} props */
function Wipe({ runs }) {
  const names = runs.map((run) => run.wish.tier);
  const [left, setLeft] = useState(names[0] ?? "");
  const [right, setRight] = useState(names.at(-1) ?? "");
  const [at, setAt] = useState(50);
  const of = (/** @type {string} */ name) => runs.find((run) => run.wish.tier === name)?.pictures[0]?.url ?? "";
  const choice = (/** @type {string} */ side, /** @type {string} */ value, /** @type {(name: string) => void} */ set) =>
    html`<div class="field">
      <label for=${`wipe-${side}`}>${side}</label>
      <select id=${`wipe-${side}`} value=${value} onChange=${(/** @type {any} */ event) => set(event.target.value)}>
        ${names.map((name) => html`<option value=${name}>${name}</option>`)}
      </select>
    </div>`;
  return html`<section class="card wipe" aria-label="Two tiers over each other">
    <div class="wipe-frame" ref=${(/** @type {HTMLElement | null} */ box) => box?.style.setProperty("--at", `${at}%`)}>
      <img src=${of(right)} alt=${`With ${right}, on the right`} />
      <img class="over" src=${of(left)} alt=${`With ${left}, on the left`} />
      <span class="wipe-line" aria-hidden="true" />
      <input type="range" min="0" max="100" step="1" value=${at} aria-label=${`How much of ${left} is seen, in per cent`}
        onInput=${(/** @type {any} */ event) => setAt(Number(event.target.value))} />
    </div>
    <div class="stack tight wipe-choice">
      <h3>Look closer</h3>
      <p class="soft small">Drag over the picture, or use the arrow keys on it.</p>
      <div class="pair">${choice("left", left, setLeft)}${choice("right", right, setRight)}</div>
    </div>
  </section>`;
}
