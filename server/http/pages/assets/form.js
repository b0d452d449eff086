// What to draw, and how: the form.
import { counted, percent } from "./format.js";
import { AUTO, drawnSeed } from "./request.js";
import { html, useState } from "./ui.js";

/** @typedef {import("./request.js").Wish} Wish */
/** @typedef {import("./api.js").Tiers} Tiers */

const PICTURES = ["image/png", "image/jpeg", "image/webp"];
const MAX_PICTURE = 8 * 2 ** 20; // bytes
const MAX_SEED = 2 ** 53 - 1; // the API takes more, this language counts no further

/** @param {any} event @returns {number | null} */
const numberOf = (event) => (event.target.value === "" ? null : Number(event.target.value));

/**
 * @param {{wish: Wish, tiers: Tiers, onChange: (change: Partial<Wish>) => void, onSubmit: () => void, onCompare: () => void,
 *   busy: boolean, seconds: number}} props  seconds: until the server takes requests again
 */
export function Form({ wish, tiers, onChange, onSubmit, onCompare, busy, seconds }) {
  const submit = (/** @type {Event} */ event) => {
    event.preventDefault();
    onSubmit();
  };
  const keys = (/** @type {KeyboardEvent} */ event) => {
    const form = /** @type {HTMLFormElement} */ (event.currentTarget);
    if (event.key === "Enter" && (event.metaKey || event.ctrlKey) && !busy && !seconds) form.requestSubmit();
  };
  const compare = (/** @type {any} */ event) => event.currentTarget.form.reportValidity() && onCompare();
  const chosen = tiers.tiers.find((tier) => tier.tier === (wish.tier === AUTO ? tiers.default : wish.tier));
  return html`<form class="card form stack" onSubmit=${submit} onKeyDown=${keys} aria-label="What to draw">
    <${Subject} wish=${wish} tiers=${tiers} onChange=${onChange} />
    <div class="pair">
      <div class="field">
        <label for="seed">Seed</label>
        <div class="joined">
          <input id="seed" type="number" inputmode="numeric" min="0" max=${MAX_SEED} step="1" required value=${wish.seed}
            onInput=${(/** @type {any} */ event) => onChange({ seed: numberOf(event) ?? 0 })} />
          <button type="button" aria-label="Draw another seed" title="Draw another seed" onClick=${() => onChange({ seed: drawnSeed() })}>
            <span class="die" aria-hidden="true" />
          </button>
        </div>
      </div>
      <div class="field">
        <label for="count">Images</label>
        <select id="count" value=${String(wish.count)} onChange=${(/** @type {any} */ event) => onChange({ count: Number(event.target.value) })}>
          ${Array.from({ length: tiers.max_images }, (_, i) => html`<option value=${String(i + 1)}>${i + 1}</option>`)}
        </select>
      </div>
      ${
        tiers.guides &&
        html`<div class="field">
          <label for="guidance">Guidance</label>
          <input id="guidance" type="number" inputmode="decimal" min="0" max="30" step="any" value=${wish.guidance ?? ""}
            placeholder=${chosen ? `${chosen.default_guidance}, the tier's` : ""}
            onInput=${(/** @type {any} */ event) => onChange({ guidance: numberOf(event) })} />
        </div>`
      }
      ${
        wish.tier === AUTO &&
        html`<div class="field">
          <label for="deadline">Time limit (s)</label>
          <input id="deadline" type="number" inputmode="decimal" min="0.001" max="86400" step="any" placeholder="no limit" value=${wish.deadline ?? ""}
            onInput=${(/** @type {any} */ event) => onChange({ deadline: numberOf(event) })} />
        </div>`
      }
    </div>
    <details class="more">
      <summary>More</summary>
      <div class="stack">
    ${
      tiers.prompt_kind === "text" &&
      tiers.guides &&
      html`<div class="field">
        <label for="negative">Negative prompt</label>
        <input id="negative" maxlength="4000" placeholder="what to keep away from" value=${wish.negative}
          onInput=${(/** @type {any} */ event) => onChange({ negative: event.target.value })} />
      </div>`
    }
      ${
        tiers.sizes.length > 1 &&
        html`<div class="field">
          <label for="size">Size</label>
          <select id="size" value=${wish.size || tiers.sizes[0]} onChange=${(/** @type {any} */ event) => onChange({ size: event.target.value })}>
            ${tiers.sizes.map((size) => html`<option value=${size}>${size.replace("x", " × ")}</option>`)}
          </select>
        </div>`
      }
        <${Start} wish=${wish} onChange=${onChange} />
      </div>
    </details>
    <div class="actions">
      <button class="primary" type="submit" disabled=${busy || seconds > 0}>
        ${seconds > 0 ? `Wait ${counted(seconds, "second")}` : `Generate with ${wish.tier}`}
      </button>
      <button type="button" disabled=${busy || seconds > 0} onClick=${compare}>Compare all tiers</button>
    </div>
  </form>`;
}

/** @param {File | undefined} file @param {(change: Partial<Wish>) => void} onChange @param {(text: string) => void} refuse */
function readPicture(file, onChange, refuse) {
  if (!file) return;
  if (!PICTURES.includes(file.type)) return refuse("Take a PNG, JPEG or WebP file.");
  if (file.size > MAX_PICTURE) return refuse("The file may have 8 MiB at most.");
  const reader = new FileReader();
  reader.onload = () => onChange({ image: String(reader.result) });
  reader.readAsDataURL(file);
}

/** A picture to start from, chosen or dropped. @param {{wish: Wish, onChange: (change: Partial<Wish>) => void}} props */
function Start({ wish, onChange }) {
  const [refusal, refuse] = useState("");
  const take = (/** @type {FileList | null | undefined} */ files) => {
    refuse("");
    readPicture(files?.[0], onChange, refuse);
  };
  const drop = (/** @type {DragEvent} */ event) => {
    event.preventDefault();
    take(event.dataTransfer?.files);
  };
  if (!wish.image) {
    return html`<div class="field drop" onDragOver=${(/** @type {Event} */ event) => event.preventDefault()} onDrop=${drop}>
      <label for="start">Start from a picture <span class="soft">(or drop one here)</span></label>
      <input id="start" type="file" accept=${PICTURES.join(",")} onChange=${(/** @type {any} */ event) => take(event.target.files)} />
      ${refusal && html`<p class="note bad" role="alert">${refusal}</p>`}
    </div>`;
  }
  return html`<div class="start">
    <img src=${wish.image} alt="The picture to start from" />
    <div class="field">
      <label for="strength">Made anew: ${percent(wish.strength)} of the steps</label>
      <input id="strength" type="range" min="0.05" max="1" step="0.05" value=${wish.strength}
        onInput=${(/** @type {any} */ event) => onChange({ strength: Number(event.target.value) })} />
      <button type="button" class="quiet" onClick=${() => onChange({ image: null })}>Remove the picture</button>
    </div>
  </div>`;
}

/** @param {{wish: Wish, tiers: Tiers, onChange: (change: Partial<Wish>) => void}} props */
function Subject({ wish, tiers, onChange }) {
  const take = (/** @type {any} */ event) => onChange({ prompt: event.target.value });
  if (tiers.prompt_kind === "none") {
    return html`<p class="note">This model takes no prompt: it draws what it likes. The seed decides what.</p>`;
  }
  if (tiers.prompt_kind === "class") {
    return html`<div class="field">
      <label for="prompt">Class</label>
      <select id="prompt" value=${wish.prompt} onChange=${take}>
        ${tiers.classes.map((name) => html`<option value=${name}>${name}</option>`)}
      </select>
    </div>`;
  }
  return html`<div class="field">
    <label for="prompt">Prompt</label>
    <textarea id="prompt" rows="2" maxlength="4000" required value=${wish.prompt} onInput=${take} />
    ${
      tiers.examples.length > 0 &&
      html`<div class="row examples" role="group" aria-label="Examples">
        ${tiers.examples.map(
          (example) =>
            html`<button type="button" class="chip" aria-pressed=${example === wish.prompt} onClick=${() => onChange({ prompt: example })}>${example}</button>`,
        )}
      </div>`
    }
  </div>`;
}
