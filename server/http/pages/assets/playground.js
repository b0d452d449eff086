// The playground: a page to try the tiers.
import { ApiError, key } from "./api.js";
import { Comparison } from "./compare.js";
import { Form } from "./form.js";
import { percent, time } from "./format.js";
import { entry, forget, remember, remembered } from "./history.js";
import { Kept } from "./kept.js";
import { KeyForm } from "./key.js";
import { Empty, Shell } from "./opening.js";
import { thumbnail } from "./pixels.js";
import { Problem, useCountdown, waitOf } from "./problem.js";
import { AUTO } from "./request.js";
import { Result } from "./result.js";
import { beginning, cancel, follow, isUnderWay, tierOf } from "./run.js";
import { tiersOf, useServer } from "./server.js";
import { TierCards } from "./tiers.js";
import { html, render, useEffect, useRef, useState } from "./ui.js";

/** @typedef {import("./request.js").Wish} Wish */
/** @typedef {import("./run.js").Run} Run */
/** @typedef {import("./api.js").Tiers} Tiers */

const ALL = "all tiers"; // what the history calls a comparison

/** @type {Wish} */
const FIRST = {
  model: "",
  prompt: "",
  negative: "",
  seed: 7,
  guidance: null,
  size: "",
  count: 1,
  tier: "",
  deadline: null,
  image: null,
  strength: 0.6,
};

function Playground() {
  const [wish, setWish] = useState(FIRST);
  const [run, setRun] = useState(/** @type {Run | null} */ (null));
  const [compared, setCompared] = useState(/** @type {Run[]} */ ([]));
  const [problem, setProblem] = useState(/** @type {ApiError | null} */ (null));
  const [until, setUntil] = useState(0);
  const [kept, setKept] = useState(remembered);
  const [spoken, say] = useState("");
  const { tiers, models, strips, error, look } = useServer(wish.model);
  const stopped = useRef(false);
  const stage = useRef(/** @type {HTMLElement | null} */ (null));
  const seconds = useCountdown(until);
  const change = (/** @type {Partial<Wish>} */ some) => setWish((before) => ({ ...before, ...some }));

  useEffect(() => {
    if (!tiers) return;
    const offered = [AUTO, ...tiers.tiers.map((tier) => tier.tier)];
    const drawable = tiers.prompt_kind !== "class" || tiers.classes.includes(wish.prompt);
    change({
      ...(offered.includes(wish.tier) ? {} : { tier: cheapBest(tiers) }),
      ...(tiers.prompt_kind === "none"
        ? { prompt: "" }
        : !wish.prompt || !drawable
          ? { prompt: tiers.examples[0] ?? tiers.classes[0] ?? "a red apple" }
          : {}),
      ...(tiers.sizes.includes(wish.size) ? {} : { size: "" }),
    });
  }, [tiers?.model]);

  useEffect(() => {
    if (error?.status === 404) change({ model: "" }); // a model that the server had, or had when the history was written
  }, [error]);

  const fail = (/** @type {ApiError} */ fault) => {
    if (fault.status === 401) look();
    setProblem(fault);
    setUntil(waitOf(fault));
  };

  /** On a small screen the images are far below the button. */
  const begin = () => {
    setProblem(null);
    requestAnimationFrame(() => {
      const top = stage.current?.getBoundingClientRect().top ?? 0;
      if (top < 0 || top > 0.6 * innerHeight) stage.current?.scrollIntoView({ behavior: "smooth", block: "start" });
    });
  };

  /** @param {Wish} asked @param {Tiers} offer  of the asked model */
  const generate = async (asked, offer) => {
    begin();
    setCompared([]);
    say(`Asked for ${asked.prompt || "an image"}, with ${asked.tier}.`);
    const first = beginning(asked, offer.tiers);
    const steps = (tierOf(first) ?? offer.tiers[0])?.steps;
    const done = await follow(first, steps ? steps.full + steps.partial : 1, setRun);
    if (done.error) return fail(done.error);
    say(`Done in ${time(done.milliseconds)}, for ${percent(done.answer.relative_cost)} of the original's work.`);
    const picture = await thumbnail(done.pictures[0]?.url ?? "");
    setKept(remember(entry({ ...asked, seed: done.answer.seed }, done.answer.tier ?? asked.tier, picture)));
    look();
  };

  /** @param {Wish} asked @param {Tiers} offer  of the asked model */
  const compare = async (asked, offer) => {
    begin();
    setRun(null);
    stopped.current = false;
    const guidance =
      asked.guidance ??
      (offer.guides ? (offer.tiers.find((tier) => tier.tier === offer.default)?.default_guidance ?? null) : null);
    const runs = offer.tiers.map((tier) => beginning({ ...asked, tier: tier.tier, count: 1, guidance }, offer.tiers));
    setCompared(runs);
    say(`Comparing ${runs.length} tiers.`);
    let last = "";
    // Without previews: to decode them would take the cheapest tiers as long as to draw.
    for (const one of runs) {
      if (stopped.current) break;
      const done = await follow(one, 1, (now) =>
        setCompared((all) => all.map((old) => (old.wish.tier === one.wish.tier ? now : old))),
      );
      say(done.error ? "" : `${one.wish.tier}: ${time(done.milliseconds)}.`);
      last = done.pictures[0]?.url ?? "";
      if (done.error) {
        stopped.current = true;
        fail(done.error);
      }
    }
    if (stopped.current) setCompared((all) => all.map((one) => (isUnderWay(one) ? { ...one, state: "failed" } : one)));
    else setKept(remember(entry(asked, ALL, await thumbnail(last))));
    look();
  };

  const fits = !wish.model || tiers?.model === wish.model; // else what is shown is still another model's
  const busy = !fits || (run !== null && isUnderWay(run)) || compared.some(isUnderWay);
  const stop = () => {
    stopped.current = true;
    const now = run ?? compared.find(isUnderWay);
    if (now) cancel(now);
  };
  /** @param {Wish} asked  maybe of another model than is shown: the history has them all */
  const again = async (asked, tier = "") => {
    setWish(asked);
    try {
      const offer = tiers && fits && asked.model === wish.model ? tiers : await tiersOf(asked.model);
      return tier === ALL ? compare(asked, offer) : generate(asked, offer);
    } catch (fault) {
      fail(ApiError.of(fault));
    }
  };
  /** To another model, with nothing drawn: what is there is not its own. */
  const turnTo = (/** @type {string} */ model) => {
    change({ model });
    setRun(null);
    setCompared([]);
    setProblem(null);
  };

  if (error?.status === 401) {
    return html`<${Shell}><${KeyForm} refused=${key.get() !== ""} onKey=${look} /></${Shell}>`;
  }
  if (!tiers) {
    return html`<${Shell}>${error ? html`<${Problem} error=${error} seconds=${0} />` : html`<p class="soft">Asking the server what it has…</p>`}</${Shell}>`;
  }
  const choice =
    models.length > 1 &&
    html`<div class="field model">
      <label for="model">Model</label>
      <select id="model" value=${wish.model || tiers.model} disabled=${busy && fits} onChange=${(/** @type {any} */ event) => turnTo(event.target.value)}>
        ${models.map((name) => html`<option value=${name}>${name}</option>`)}
      </select>
    </div>`;
  return html`<${Shell} tiers=${tiers} choice=${choice}>
    <p class="unseen" role="status">${spoken}</p>
    ${error && html`<${Problem} error=${error} seconds=${0} />`}
    <${TierCards} tiers=${tiers.tiers} strips=${strips} chosen=${wish.tier} onChoose=${(/** @type {string} */ tier) => change({ tier })} />
    <div class="work">
      <div class="stack">
        <${Form} wish=${wish} tiers=${tiers} onChange=${change} onSubmit=${() => generate(wish, tiers)} onCompare=${() => compare(wish, tiers)} busy=${busy} seconds=${seconds} />
        ${
          key.get() &&
          html`<button type="button" class="quiet" onClick=${() => {
            key.forget();
            look();
          }}>Forget my API key</button>`
        }
      </div>
      <div class="stack stage" ref=${stage}>
        ${problem && html`<${Problem} error=${problem} seconds=${seconds} auto=${run?.wish.tier === AUTO} />`}
        ${run && html`<${Result} run=${run} strips=${strips} withKey=${key.get() !== ""} onCancel=${stop} onAgain=${again} say=${say} />`}
        ${compared.length > 0 && html`<${Comparison} runs=${compared} strips=${strips} withKey=${key.get() !== ""} onAgain=${again} onCancel=${stop} say=${say} />`}
        ${!run && compared.length === 0 && !problem && html`<${Empty} tiers=${tiers} strips=${strips} subject=${wish.prompt} disabled=${busy || seconds > 0 || (tiers.prompt_kind === "text" && !wish.prompt)} onCompare=${() => compare(wish, tiers)} />`}
        <${Kept} kept=${kept} models=${models} busy=${busy || seconds > 0} onAgain=${again} onForget=${() => {
          forget();
          setKept([]);
        }} />
      </div>
    </div>
  </${Shell}>`;
}

/** The tier to begin with: the default one, or the cheapest. @param {Tiers} tiers @returns {string} */
function cheapBest(tiers) {
  return tiers.tiers.some((tier) => tier.tier === tiers.default) ? tiers.default : (tiers.tiers[0]?.tier ?? AUTO);
}

const main = document.getElementById("main");
if (main) {
  main.replaceChildren();
  render(html`<${Playground} />`, main);
}
