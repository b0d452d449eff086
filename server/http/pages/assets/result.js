// A request's images as they come, and what they took.
import { counted, macs, percent, time } from "./format.js";
import { asCurl, asOpenAI, asPython } from "./request.js";
import { isUnderWay } from "./run.js";
import { Strip } from "./strip.js";
import { wholeOf } from "./tiers.js";
import { html, useState } from "./ui.js";

/** @typedef {import("./run.js").Run} Run */
/** @typedef {import("./run.js").Picture} Picture */
/** @typedef {import("./request.js").Wish} Wish */
/** @typedef {import("./tiers.js").Strips} Strips */

const EXPECTED = ["prompt_ignored", "fewer_previews"]; // warnings of what the page itself had to send
/** @type {Record<string, (wish: Wish, server: string, withKey: boolean) => string>} */
const FORMATS = { curl: asCurl, Python: asPython, OpenAI: asOpenAI };

/** @param {{run: Run, picture: Picture, alt: string}} props */
export function Frame({ run, picture, alt }) {
  const size = (run.plan ? /** @type {any} */ (run.plan).size : run.wish.size) || "1x1";
  const [width, height] = size.split("x").map(Number);
  const waiting = isUnderWay(run) ? "drawing…" : "no image";
  return html`<div class=${picture.done ? "frame" : "frame unfinished"} ref=${(/** @type {HTMLElement | null} */ box) => box?.style.setProperty("aspect-ratio", `${width} / ${height}`)}>
    ${picture.url ? html`<img src=${picture.url} alt=${picture.done ? alt : `Preview: ${alt}`} />` : html`<span class="soft small">${waiting}</span>`}
  </div>`;
}

/**
 * What runs of a schedule that starts from a picture: a full step, and its last computed steps.
 * @param {import("./strip.js").Step[]} steps
 * @param {number} computed  steps that run
 * @returns {import("./strip.js").Step[]}
 */
export function lastOf(steps, computed) {
  const places = steps.flatMap((step, i) => (step.kind === "null" ? [] : [i]));
  const rest = computed > 1 ? steps.slice(places.at(1 - computed)) : [];
  return [{ kind: "full", branch: 0 }, ...rest];
}

/**
 * How far an image is: the schedule's strip, which fills as its steps land.
 * @param {{run: Run, picture: Picture, strips: Strips, whole: number, name: string}} props  whole: steps of the original
 */
export function Progress({ run, picture, strips, whole, name }) {
  const of = run.plan?.steps ?? 1;
  const schedule = strips[run.plan?.schedule ?? ""];
  const steps = schedule && run.wish.image ? lastOf(schedule, of) : schedule;
  return html`<div role="progressbar" aria-label=${name} aria-valuemin="0" aria-valuemax=${of} aria-valuenow=${picture.step}
    aria-valuetext=${`${picture.step} of ${counted(of, "computed step")}`}>
    ${
      steps
        ? html`<${Strip} steps=${steps} of=${run.wish.image ? 0 : whole} computed=${picture.done ? undefined : picture.step} />`
        : html`<div class="strip filling" />`
    }
  </div>`;
}

/** @param {{run: Run, whole: number}} props */
export function Facts({ run, whole }) {
  const { answer, plan } = run;
  if (!plan) return html`<p class="soft small">${run.state === "asking" ? "In the queue…" : ""}</p>`;
  const repeats = answer?.repeats?.length ?? 0;
  const made = run.pictures.length - repeats;
  const facts = [
    ["Tier", answer?.tier ?? plan.tier ?? "a schedule"],
    [answer ? "Took" : "Predicted", time(answer ? run.milliseconds : plan.predicted_ms)],
    ["MACs", made === 0 ? "none" : `${macs(plan.macs)}, ${percent(plan.relative_cost)} of the original's`],
    ...(repeats ? [["Made before", made === 0 ? "yes" : `${repeats} of ${run.pictures.length}`]] : []),
    ["Steps", `${plan.steps} computed, of ${whole}`],
    ["Seed", String(plan.seed)],
    ...(plan.guidance_scale > 1 ? [["Guidance", String(plan.guidance_scale)]] : []),
  ];
  return html`<dl class="facts">
    ${facts.map(([name, value]) => html`<div key=${name}><dt>${name}</dt><dd>${value}</dd></div>`)}
  </dl>`;
}

/** @param {{run: Run}} props */
export function Unmet({ run }) {
  const unmet = run.warnings.filter(({ code }) => !EXPECTED.includes(code));
  if (unmet.length === 0) return null;
  return html`<ul class="note warn plain" aria-label="Wishes that were not met">
    ${unmet.map(({ code, message }) => html`<li key=${code}>${message}</li>`)}
  </ul>`;
}

/**
 * The request as a program: shown, and copied where the browser lets a page do that (only over HTTPS, or on this machine).
 * @param {{wish: Wish, withKey: boolean, say: (text: string) => void}} props
 */
export function CopyAs({ wish, withKey, say }) {
  const [shown, setShown] = useState("");
  const [copied, setCopied] = useState(false);
  const server = new URL(".", document.baseURI).href.replace(/\/$/, "");
  const text = FORMATS[shown]?.(wish, server, withKey) ?? "";
  const choose = async (/** @type {string} */ format) => {
    if (format === shown) return setShown("");
    setShown(format);
    setCopied(false);
    try {
      await navigator.clipboard.writeText(FORMATS[format]?.(wish, server, withKey) ?? "");
      setCopied(true);
      say(`Copied as ${format}.`);
    } catch {
      say(`Here it is as ${format}, to copy by hand.`);
    }
  };
  return html`<div class="stack tight">
    <span class="row" role="group" aria-label="Copy the request">
      <span class="soft small">Copy as</span>
      ${Object.keys(FORMATS).map(
        (format) =>
          html`<button type="button" class="quiet" aria-pressed=${format === shown} onClick=${() => choose(format)}>${format}</button>`,
      )}
      ${shown && html`<span class="soft small">${copied ? "copied" : "copy it by hand"}</span>`}
    </span>
    ${shown && html`<pre class="code" tabindex="0" aria-label=${`The request as ${shown}`}>${text}</pre>`}
  </div>`;
}

/** @param {Wish} wish @param {Picture} picture @param {string} tier @returns {string} */
export function fileName(wish, picture, tier) {
  const subject = wish.prompt.replaceAll(/[^\p{L}\p{N}]+/gu, "-").slice(0, 40) || "image";
  return `${subject}-${tier}-${picture.seed}.png`;
}

/**
 * @param {{run: Run, strips: Strips, withKey: boolean, onCancel: () => void, onAgain: (wish: Wish) => void,
 *   say: (text: string) => void}} props
 */
export function Result({ run, strips, withKey, onCancel, onAgain, say }) {
  const busy = isUnderWay(run);
  const whole = wholeOf(run.offered);
  const subject = run.wish.prompt || "an image";
  const exact = { ...run.wish, tier: run.plan?.tier ?? run.wish.tier };
  if (run.state === "failed" && run.pictures.every((picture) => !picture.url)) return null; // why is said above
  const several = run.pictures.length > 1;
  const only = several ? undefined : run.pictures[0];
  const tier = run.plan?.tier ?? run.wish.tier;
  return html`<section class=${several ? "stack" : "result"} aria-label="Result">
    <div class=${several ? "pictures several" : "pictures"}>
      ${run.pictures.map(
        (picture, i) => html`<figure class="stack tight" key=${i}>
          <${Frame} run=${run} picture=${picture} alt=${`${subject}, with ${tier}`} />
          <${Progress} run=${run} picture=${picture} strips=${strips} whole=${whole} name=${several ? `Image ${i + 1}` : "Steps"} />
          ${
            picture.done &&
            several &&
            html`<a class="small" href=${picture.url} download=${fileName(run.wish, picture, tier)}>Download seed ${picture.seed}</a>`
          }
        </figure>`,
      )}
    </div>
    <div class="stack">
      <${Facts} run=${run} whole=${whole} />
      <${Unmet} run=${run} />
      <div class="row">
        ${busy && html`<button type="button" class="danger" onClick=${onCancel}>Cancel</button>`}
        ${!busy && html`<button type="button" onClick=${() => onAgain(exact)}>Same again</button>`}
        ${only?.done && html`<a class="button" href=${only.url} download=${fileName(run.wish, only, tier)}>Download</a>`}
      </div>
      ${!busy && html`<${CopyAs} wish=${exact} withKey=${withKey} say=${say} />`}
    </div>
  </section>`;
}
