// The tiers: what each means, what it meant, and moving it.
import { html, useState } from "../ui.js";
import { Candidate } from "./candidate.js";
import { ReasonDialog } from "./dialog.js";
import { DifferenceView, named } from "./schedule.js";
import { Term } from "./term.js";
import { Cells, cost, decibels, known, rfid, short, When } from "./words.js";

/** @typedef {import("./types.js").Source} Source */
/** @typedef {import("./types.js").Tier} Tier */
/** @typedef {import("./types.js").Tiers} TiersDocument */
/** @typedef {import("./types.js").Version} Version */
/** @typedef {import("./types.js").PromotionRequest} PromotionRequest */
/** @typedef {{action: "promote" | "rollback", tier: Tier}} Asking  tier: as it was when the question was asked, whatever becomes of it */
/** @typedef {{tier: Tier, close: () => void, renew: () => Promise<void>}} Question */
/** @typedef {{source: Source, query: string, versions: Version[], mayAct: boolean, again: () => Promise<void>, open: (digest: string) => void}} Context */

/** @param {Context & {tiers: TiersDocument}} props */
export function Tiers({ tiers, ...context }) {
  const [asking, setAsking] = useState(/** @type {Asking | null} */ (null));
  const [approving, setApproving] = useState(/** @type {PromotionRequest | null} */ (null));
  const close = () => setAsking(null);
  const renew = async () => {
    const { tiers } = /** @type {TiersDocument} */ (await context.source.get(`tiers${context.query}`));
    const tier = tiers.find((one) => one.tier === asking?.tier.tier);
    if (!tier) throw new Error(`There is no tier ${asking?.tier.tier} any more.`);
    if (asking?.action === "rollback" && !tier.back) throw new Error(`There is nothing to roll ${tier.tier} back to any more.`);
    setAsking(asking && { ...asking, tier });
    await context.again();
  };
  if (!tiers.tiers.length) {
    return html`<p class="note">The registry has no tier yet: python -m registry promote makes one of a published schedule.</p>`;
  }
  return html`<div class="stack">
    ${(tiers.not_served ?? []).map(({ tier, reason }) => html`<p class="note bad" key=${tier}>${tier} is not served: ${reason}</p>`)}
    ${(tiers.requests ?? []).map((request) => html`<${Waiting} key=${request.id} request=${request} approve=${setApproving} ...${context} />`)}
    ${approving && html`<${Approve} request=${approving} now=${tiers.tiers.find(({ tier }) => tier === approving.tier)} close=${() => setApproving(null)} ...${context} />`}
    ${[...tiers.tiers].sort((a, b) => price(a) - price(b)).map((tier) => html`<${TierCard} key=${tier.tier} tier=${tier} all=${tiers} ask=${setAsking} ...${context} />`)}
    ${asking?.action === "promote" && html`<${Promote} tier=${asking.tier} close=${close} renew=${renew} ...${context} />`}
    ${asking?.action === "rollback" && html`<${Rollback} tier=${asking.tier} close=${close} renew=${renew} ...${context} />`}
  </div>`;
}

/** @param {Tier} tier @returns {number} the cheapest first, and those whose cost no document says last */
const price = (tier) => tier.figures?.relative_cost ?? Number.POSITIVE_INFINITY;

/** @param {Context & {tier: Tier, all: TiersDocument, ask: (asking: Asking) => void}} props */
function TierCard({ tier, all, ask, ...context }) {
  const here = all.in_force?.find((one) => one.tier === tier.tier);
  const follows = here && tier.digest && here.digest !== tier.digest;
  return html`<article class="tier" aria-label=${`Tier ${tier.tier}`}>
    <div class="row spread">
      <h3>${tier.tier} ${all.default === tier.tier && html`<span class="chip">default</span>`}</h3>
      ${
        context.mayAct &&
        !tier.fault &&
        html`<span class="row">
        <button type="button" onClick=${() => ask({ action: "promote", tier })}>Promote …</button>
        <button type="button" disabled=${!tier.back} onClick=${() => ask({ action: "rollback", tier })}>Roll back …</button>
      </span>`
      }
    </div>
    ${all.second_person?.includes(tier.tier) && html`<p class="note">A promotion takes a second person: Promote makes a request, which another operator approves. A rollback takes one.</p>`}
    ${tier.fault && html`<p class="note bad">${tier.fault}</p>`}
    ${tier.figures && html`<${Cells} figures=${tier.figures} />`}
    ${
      tier.digest &&
      html`<p class="small figures">
      <button type="button" class="quiet link mono" aria-label=${`Schedule ${short(tier.digest)} of ${tier.tier}`} onClick=${() => tier.digest && context.open(tier.digest)}>${short(tier.digest)}</button>
      <span><${Term} word="version" /> ${tier.version}</span>
      <span><${Term} word="relative cost">cost<//> ${known(tier.figures?.relative_cost, cost)}</span>
      <span><${Term} word="rFID" /> ${known(tier.figures?.rfid, rfid)}</span>
      <span><${Term} word="PSNR" /> ${known(tier.figures?.psnr, decibels)}</span>
      <span><${Term} word="move">moves<//> ${tier.moves}</span>
    </p>`
    }
    ${follows && html`<p class="note warn">This server still serves version ${here.version ?? "?"}, ${short(here.digest)}.</p>`}
    ${
      tier.candidate &&
      html`<${Candidate} source=${context.source} query=${context.query} shown=${tier.candidate} open=${context.open}
      refused=${all.not_compared?.find((one) => one.tier === tier.tier)?.reason ?? null} />`
    }
    <details><summary class="small">History</summary><${History} tier=${tier} /></details>
  </article>`;
}

/** @param {Context & {request: PromotionRequest, approve: (request: PromotionRequest) => void}} props */
function Waiting({ request, approve, mayAct }) {
  return html`<p class="note warn" role="status">${request.author} asks to let ${request.tier} mean version ${request.version}
    <span class="mono"> ${short(request.digest)}</span>${request.reason && `: ${request.reason}`} (until <${When} when=${request.until} />)
    ${mayAct && html` <button type="button" onClick=${() => approve(request)}>Approve …</button>`}</p>`;
}

/** @param {Context & {request: PromotionRequest, now: Tier | undefined, close: () => void}} props */
function Approve({ request, now, close, source, query, again }) {
  /** @param {string} reason */
  async function act(reason) {
    await source.act(`requests/${request.id}/approve${query}`, { reason });
    await again();
  }
  return html`<${ReasonDialog} title=${`Approve for ${request.author}`} verb=${`Let ${request.tier} mean version ${request.version}`} close=${close} act=${act} renew=${again}>
    ${
      now?.digest &&
      html`<${DifferenceView} source=${source} query=${query} a=${now.digest} b=${request.digest}
      names=${[`now: version ${now.version}, ${short(now.digest)}`, `then: version ${request.version}, ${short(request.digest)}`]} />`
    }
  <//>`;
}

/** @param {{tier: Tier}} props */
function History({ tier }) {
  return html`<ol class="history small">
    ${tier.history.map(
      (move, i) => html`<li><b>${move.action === "rollback" ? "rolled back" : "promoted"}</b> to version ${move.version}
      <span class="mono"> ${short(move.digest)}</span>, <${When} when=${move.time} />, ${move.author}${i === 0 ? " (now)" : ""}
      ${move.reason && html`<span class="soft">: ${move.reason}</span>`}</li>`,
    )}
  </ol>`;
}

/** @param {Context & Question} props */
function Promote({ tier, close, renew, source, query, versions, again }) {
  const [wanted, setWanted] = useState(/** @type {Version | null} */ (null));
  const choices = versions.filter((version) => version.figures && version.digest !== tier.digest);
  const chosen = wanted?.digest === tier.digest ? null : wanted;
  const number = chosen ? String(chosen.version) : "";
  const choose = (/** @type {string} */ value) => setWanted(choices.find((one) => String(one.version) === value) ?? null);
  /** @param {string} reason */
  async function act(reason) {
    await source.act(`tiers/${tier.tier}/promote${query}`, { schedule: number, moves: tier.moves, reason });
    await again();
  }
  return html`<${ReasonDialog} title=${`Promote ${tier.tier}`} verb=${chosen ? `Let ${tier.tier} mean version ${chosen.version}` : "Promote"}
    ready=${Boolean(chosen)} close=${close} act=${act} renew=${renew}>
    <div class="field">
      <label for="chosen">To</label>
      <select id="chosen" required value=${number} onChange=${(/** @type {any} */ event) => choose(event.currentTarget.value)}>
        <option value="">choose a version</option>
        ${choices.map((version) => html`<option key=${version.version} value=${version.version}>${named(version)}</option>`)}
      </select>
    </div>
    ${
      chosen &&
      tier.digest &&
      html`<${DifferenceView} source=${source} query=${query} a=${tier.digest} b=${chosen.digest}
      names=${[`now: version ${tier.version}, ${short(tier.digest)}`, `then: version ${chosen.version}, ${short(chosen.digest)}`]} />`
    }
  <//>`;
}

/** @param {Context & Question} props */
function Rollback({ tier, close, renew, source, query, again }) {
  const { back } = tier;
  if (!back || !tier.digest) return null;
  /** @param {string} reason */
  async function act(reason) {
    await source.act(`tiers/${tier.tier}/rollback${query}`, { moves: tier.moves, reason });
    await again();
  }
  return html`<${ReasonDialog} title=${`Roll back ${tier.tier}`} verb=${`Let ${tier.tier} mean version ${back.version} again`} close=${close} act=${act} renew=${renew}>
    <${DifferenceView} source=${source} query=${query} a=${tier.digest} b=${back.digest}
      names=${[`now: version ${tier.version}, ${short(tier.digest)}`, `then: version ${back.version}, ${short(back.digest)}`]} />
  <//>`;
}
