// What the server does now: its own metrics, asked for every few seconds. Rates are of what this page has seen go by.
import { counted, macs, percent, time } from "../format.js";
import { html, useEffect, useState } from "../ui.js";
import { Term } from "./term.js";
import { known } from "./words.js";

/** @typedef {import("./types.js").Live} Live */
/** @typedef {import("./types.js").LiveModel} LiveModel */
/** @typedef {import("./types.js").LiveTier} LiveTier */
/** @typedef {import("./types.js").Histogram} Histogram */
/** @typedef {import("./types.js").Kind} Kind */
/** @typedef {import("./term.js").Word} Word */

const SECONDS = 3;
const KEPT = 60; // answers: three minutes
const WINDOW = 20; // answers that a rate is over: a minute
const KINDS = /** @type {Kind[]} */ (["full", "partial", "null"]);

/** @param {{source: import("./types.js").Source}} props */
export function LiveView({ source }) {
  const [seen, setSeen] = useState(/** @type {Live[]} */ ([]));
  const [fault, setFault] = useState("");
  const [paused, setPaused] = useState(false);
  useEffect(() => {
    if (paused) return;
    let over = false;
    let timer = 0;
    const look = async () => {
      try {
        const live = /** @type {Live} */ (document.hidden ? null : await source.get("work"));
        if (over) return;
        if (live) setSeen((before) => [...before.slice(1 - KEPT), live]);
        setFault("");
      } catch (error) {
        if (!over) setFault(/** @type {Error} */ (error).message);
      }
      if (!over) timer = window.setTimeout(look, SECONDS * 1000);
    };
    void look();
    return () => {
      over = true;
      window.clearTimeout(timer);
    };
  }, [source, paused]);
  const now = seen.at(-1);
  return html`<section class="stack" aria-labelledby="now">
    <div class="row spread"><h2 id="now">Now</h2>
      <span class="row small soft">${now && of(now)}
        <button type="button" class="quiet" aria-pressed=${paused} onClick=${() => setPaused(!paused)}>${paused ? "Go on" : "Pause"}</button></span></div>
    ${fault && html`<p class="note bad" role="status">${fault} What is shown is what it said last.</p>`}
    ${!now && !fault && html`<p class="soft">Asking …</p>`}
    ${now && html`<${Tiles} seen=${seen} now=${now} />`}
    ${now?.models.map((model) => html`<${ModelView} key=${model.model} seen=${seen} model=${model} alone=${now.models.length === 1} />`)}
  </section>`;
}

/** @param {Live} now */
function of(now) {
  if (now.of === "this process") return "of the process that answers";
  return now.processes > 1 ? `of all ${now.processes} processes` : "of this server";
}

/** @param {{seen: Live[], now: Live}} props */
function Tiles({ seen, now }) {
  const sum = (/** @type {Live} */ live, /** @type {(model: LiveModel) => number} */ what) =>
    live.models.reduce((all, model) => all + what(model), 0);
  const tiersOf = (/** @type {LiveModel} */ model, /** @type {(tier: LiveTier) => number} */ what) =>
    model.tiers.reduce((all, tier) => all + what(tier), 0);
  const waves = (/** @type {LiveModel} */ model, /** @type {"waves" | "rows"} */ what) =>
    model.waves.reduce((all, wave) => all + wave[what], 0);
  const refused = (/** @type {Live} */ live) => Object.values(live.refused).reduce((all, count) => all + count, 0);
  const answers = (/** @type {LiveTier} */ { requests }) => (requests.ok ?? 0) + (requests.repeat ?? 0); // some images made before
  const answered = (/** @type {Live} */ live) => sum(live, (model) => tiersOf(model, answers));
  const rows = (/** @type {Live} */ a, /** @type {Live} */ b) =>
    share(
      sum(b, (m) => waves(m, "rows")) - sum(a, (m) => waves(m, "rows")),
      sum(b, (m) => waves(m, "waves")) - sum(a, (m) => waves(m, "waves")),
    );
  const saved = (/** @type {Live} */ a, /** @type {Live} */ b) => {
    const spent = sum(b, (m) => tiersOf(m, (t) => t.macs)) - sum(a, (m) => tiersOf(m, (t) => t.macs));
    const teachers = sum(b, (m) => tiersOf(m, (t) => t.teacher_macs)) - sum(a, (m) => tiersOf(m, (t) => t.teacher_macs));
    return teachers > 0 ? 1 - spent / teachers : null;
  };
  const steps = (/** @type {Live} */ live, /** @type {Kind} */ kind) =>
    sum(live, (model) => tiersOf(model, (tier) => tier.steps[kind]));
  const first = /** @type {Live} */ (seen.at(-WINDOW) ?? seen[0]);
  const mix = KINDS.map((kind) => steps(now, kind) - steps(first, kind));
  const ever = KINDS.map((kind) => steps(now, kind));
  const jobs = Object.values(now.jobs).reduce((all, count) => all + count, 0);
  return html`<div class="tiles">
    <${Tile} word="queue" label="queue" value=${time(1000 * now.queue_seconds)} line=${seen.map((live) => live.queue_seconds)}
      note=${`${counted(
        sum(now, (model) => model.queue_images),
        "image",
      )} in it`} />
    <${Tile} word="in flight" label="in flight" value=${`${sum(now, (model) => model.inflight_images)}`} line=${seen.map((live) => sum(live, (model) => model.inflight_images))}
      note=${now.background_seconds ? `background ${time(1000 * now.background_seconds)}` : `${counted(jobs, "open job")}`} />
    <${Tile} word="row" label="rows a wave" value=${known(recent(seen, rows), (value) => value.toFixed(1))} line=${rates(seen, rows)}
      note=${`${known(rows(nothing(now), now), (value) => value.toFixed(1))} since the start`} />
    <${Tile} word="MACs saved" label="MACs saved" value=${known(recent(seen, saved), percent)} line=${rates(seen, saved)}
      note=${`${known(saved(nothing(now), now), percent)} since the start`} />
    <${Tile} word="answer" label="answers" value=${`${perSecond(seen, answered).toFixed(1)} /s`} line=${rates(seen, (a, b) => (answered(b) - answered(a)) / Math.max(1e-3, b.time - a.time))}
      note=${`${perSecond(seen, refused).toFixed(1)} /s refused`} />
    <div class="tile"><span class="small"><${Term} word="step">steps<//></span>
      <${Mix} counts=${mix.some((count) => count > 0) ? mix : ever} />
      <span class="small soft">${mix.some((count) => count > 0) ? "in the last minute" : "since the start"}</span></div>
  </div>`;
}

/** As if nothing had been done yet. @param {Live} live @returns {Live} */
const nothing = (live) => ({ ...live, models: [], refused: {} });

/** @param {number} part @param {number} whole */
const share = (part, whole) => (whole > 0 ? part / whole : null);

/** @param {Live[]} seen @param {(a: Live, b: Live) => number | null} what between two answers */
function recent(seen, what) {
  const now = seen.at(-1);
  const before = seen.at(-WINDOW) ?? seen[0];
  return now && before ? (what(before, now) ?? what(nothing(now), now)) : null;
}

/** @param {Live[]} seen @param {(live: Live) => number} what */
function perSecond(seen, what) {
  const now = seen.at(-1);
  const before = seen.at(-WINDOW) ?? seen[0];
  return now && before && now.time > before.time ? Math.max(0, (what(now) - what(before)) / (now.time - before.time)) : 0;
}

/** @param {Live[]} seen @param {(a: Live, b: Live) => number | null} what @returns {(number | null)[]} */
const rates = (seen, what) => seen.slice(1).map((live, i) => what(/** @type {Live} */ (seen[i]), live));

/** @param {{word: Word, label: string, value: string, note: string, line: (number | null)[]}} props */
function Tile({ word, label, value, note, line }) {
  return html`<div class="tile"><span class="small"><${Term} word=${word}>${label}<//></span><b class="big">${value}</b>
    <${Spark} line=${line} /><span class="small soft">${note}</span></div>`;
}

/** @param {{line: (number | null)[]}} props */
function Spark({ line }) {
  const most = Math.max(1e-9, ...line.map((value) => value ?? 0));
  const x = (/** @type {number} */ i) => (100 * (KEPT - line.length + i)) / (KEPT - 1);
  const points = line.flatMap((value, i) =>
    value === null ? [] : [`${x(i).toFixed(1)},${(22 - (20 * value) / most).toFixed(1)}`],
  );
  return html`<svg class="spark" viewBox="0 0 100 24" preserveAspectRatio="none" aria-hidden="true"><polyline points=${points.join(" ")} /></svg>`;
}

/** @param {{counts: number[]}} props */
function Mix({ counts }) {
  const all = counts.reduce((sum, count) => sum + count, 0);
  if (!all) return html`<b class="big">–</b>`;
  return html`<div class="stack tight"><div class="mix" aria-hidden="true">${KINDS.map((kind, i) => html`<i class=${kind} style=${{ flexGrow: counts[i] }} />`)}</div>
    <span class="small">${KINDS.map((kind, i) => html`<span class=${`key ${kind}`}>${percent((counts[i] ?? 0) / all)} ${kind}</span> `)}</span></div>`;
}

/** @param {{seen: Live[], model: LiveModel, alone: boolean}} props */
function ModelView({ seen, model, alone }) {
  const price = (/** @type {LiveTier} */ tier) => share(tier.macs, tier.images) ?? Number.POSITIVE_INFINITY;
  const asked = model.tiers.filter((tier) => Object.values(tier.requests).some((count) => count > 0));
  const tiers = asked.sort((a, b) => price(a) - price(b));
  const before = (seen.at(-WINDOW) ?? seen[0])?.models.find((one) => one.model === model.model);
  return html`<div class="stack tight">
    <p class="small"><${Term} word="model (of a server)">model<//> <b>${model.model}</b> <span class="soft">${model.state}${model.memory_bytes ? `, ${(model.memory_bytes / 2 ** 20).toFixed(0)} MiB` : ""}${alone ? "" : `, in ${model.loaded_in} processes`}</span>
      ${model.fault && html`<span class="bad"> ${model.fault}</span>`}</p>
    ${
      tiers.length > 0 &&
      html`<div class="scroll" role="region" aria-label=${`Tiers of ${model.model} now`} tabindex="0"><table>
      <thead><tr><th scope="col"><${Term} word="tier" /></th><th class="number" scope="col">requests</th><th class="number" scope="col">errors</th>
        <th class="number" scope="col" title="cancelled, rejected, or past their deadline">not done</th>
        <th class="number" scope="col"><${Term} word="p50" /></th><th class="number" scope="col"><${Term} word="p95" /></th>
        <th class="number" scope="col"><${Term} word="MACs">MACs an image<//></th><th class="number" scope="col"><${Term} word="MACs saved" /></th></tr></thead>
      <tbody>${tiers.map((tier) => html`<${TierLine} key=${tier.tier} tier=${tier} before=${before?.tiers.find((one) => one.tier === tier.tier)} />`)}</tbody>
    </table></div>`
    }
    ${!tiers.length && html`<p class="small soft">No request yet.</p>`}
  </div>`;
}

/** @param {{tier: LiveTier, before: LiveTier | undefined}} props */
function TierLine({ tier, before }) {
  const { error = 0, cancelled = 0, rejected = 0, deadline = 0 } = tier.requests;
  const requests = Object.values(tier.requests).reduce((all, count) => all + count, 0);
  const parts = `${cancelled} cancelled or left by their clients, ${rejected} rejected, ${deadline} past their deadline`;
  const lately = before && tier.latency.count > before.latency.count ? before.latency : null;
  const at = (/** @type {number} */ share) => known(quantile(tier.latency, lately, share), (seconds) => time(1000 * seconds));
  return html`<tr><th scope="row">${tier.tier}</th><td class="number">${requests}</td><td class="number">${error}</td>
    <td class="number" title=${parts}>${cancelled + rejected + deadline}</td>
    <td class="number">${at(0.5)}</td><td class="number">${at(0.95)}</td>
    <td class="number">${known(share(tier.macs, tier.images), macs)}</td>
    <td class="number">${known(tier.teacher_macs > 0 ? 1 - tier.macs / tier.teacher_macs : null, percent)}</td></tr>`;
}

/**
 * The value that this share of observations did not exceed, linearly within a bucket, as Prometheus does it.
 * @param {Histogram} now @param {Histogram | null} before what is left out: observations of long ago
 * @param {number} share @returns {number | null}
 */
export function quantile(now, before, share) {
  const count = now.count - (before?.count ?? 0);
  if (count <= 0) return null;
  const rank = share * count;
  let low = 0;
  let below = 0;
  for (const [i, bound] of now.bounds.entries()) {
    const upTo = (now.counts[i] ?? 0) - (before?.counts[i] ?? 0);
    if (upTo >= rank) return upTo > below ? low + ((bound - low) * (rank - below)) / (upTo - below) : bound;
    low = bound;
    below = upTo;
  }
  return now.bounds.at(-1) ?? null;
}
