// The console of a running server: asks for a key where there is need of one, and shows what it opens.
import { json, key } from "./api.js";
import { Console } from "./console/app.js";
import { Fragment, html, render, useCallback, useEffect, useState } from "./ui.js";

/** @typedef {import("./console/types.js").Operator} Operator */
/** @typedef {import("./console/types.js").Refusal} Refusal */

const ROUTES = "v1/operator";

/** @type {import("./console/types.js").Source} */
const source = {
  live: true,
  get: (path) => json(`${ROUTES}/${path}`),
  act: (path, body) => json(`${ROUTES}/${path}`, { method: "POST", body: JSON.stringify(body) }),
  compares: () => true,
};

function Page() {
  const [operator, setOperator] = useState(/** @type {Operator | null} */ (null));
  const [fault, setFault] = useState(/** @type {Refusal | null} */ (null));
  const [model, setModel] = useState("");
  const ask = useCallback(async () => {
    try {
      setOperator(await json(ROUTES));
      setFault(null);
    } catch (error) {
      setOperator(null);
      setFault(/** @type {Refusal} */ (error));
    }
  }, []);
  useEffect(() => {
    void ask();
  }, [ask]);
  function enter(/** @type {string} */ typed) {
    key.set(typed);
    void ask();
  }
  function leave() {
    key.forget();
    void ask();
  }
  if (fault && [401, 403].includes(fault.status))
    return html`<${KeyForm} fault=${fault} given=${key.get() !== ""} enter=${enter} />`;
  if (fault) {
    return html`<${Fragment}><h1>Console</h1><p class="note bad" role="alert">${fault.message}</p>
      <p><button type="button" onClick=${ask}>Try again</button></p><//>`;
  }
  if (!operator) return html`<h1>Console</h1>`;
  const chosen = model || operator.models[0] || "";
  return html`<${Fragment}>
    <div class="row spread">
      <h1>Console</h1>
      <span class="row small">
        ${
          operator.models.length > 1 &&
          html`<label class="row">Model <select value=${chosen} onChange=${(/** @type {any} */ event) => setModel(event.currentTarget.value)}>
          ${operator.models.map((name) => html`<option key=${name}>${name}</option>`)}</select></label>`
        }
        <span class="soft">${operator.may_act ? `acting as ${operator.name}` : "read-only"}</span>
        ${key.get() && html`<button type="button" class="quiet" onClick=${leave}>Forget the key</button>`}
      </span>
    </div>
    ${operator.why_not && html`<p class="note">Read-only: ${operator.why_not}</p>`}
    <${Console} key=${chosen} source=${source} model=${chosen} several=${operator.models.length > 1} mayAct=${operator.may_act} />
    <p class="small soft foot">Registry ${operator.registry}; a server follows a change within about ${operator.watch_seconds} s.</p>
  <//>`;
}

/** @param {{fault: Refusal, given: boolean, enter: (key: string) => void}} props */
function KeyForm({ fault, given, enter }) {
  const [typed, setTyped] = useState("");
  /** @param {Event} event */
  function submit(event) {
    event.preventDefault();
    if (typed.trim()) enter(typed.trim());
  }
  return html`<form class="card door stack" onSubmit=${submit}>
    <h1>Console</h1>
    <p>This server asks for an operator’s key. It is kept until you close this tab, and sent to this server only.</p>
    ${given && html`<p class="note bad" role="alert">${fault.message}</p>`}
    <div class="field"><label for="key">Operator’s key</label>
      <input id="key" type="password" autocomplete="off" spellcheck=${false} value=${typed} onInput=${(/** @type {any} */ event) => setTyped(event.currentTarget.value)} /></div>
    <p><button type="submit" class="primary">Open</button></p>
  </form>`;
}

const main = document.getElementById("main");
if (main) render(html`<${Page} />`, main);
