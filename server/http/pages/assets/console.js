// The console of a running server: asks for a key where there is need of one, and shows what it opens.
import { Console } from "./console/app.js";
import { server } from "./console/source.js";
import { Fragment, html, render, useCallback, useEffect, useMemo, useState } from "./ui.js";

/** @typedef {import("./console/types.js").Operator} Operator */
/** @typedef {import("./console/source.js").Refusal} Refusal */

const STORED = "flexi-operator-key"; // until the tab is closed

function Page() {
  const [key, setKey] = useState(sessionStorage.getItem(STORED) ?? "");
  const [operator, setOperator] = useState(/** @type {Operator | null} */ (null));
  const [fault, setFault] = useState(/** @type {Refusal | null} */ (null));
  const [model, setModel] = useState("");
  const source = useMemo(() => server(() => key), [key]);
  const ask = useCallback(async () => {
    try {
      const found = /** @type {Operator} */ (await source.get(""));
      if (key) sessionStorage.setItem(STORED, key);
      setOperator(found);
      setFault(null);
    } catch (error) {
      setOperator(null);
      setFault(/** @type {Refusal} */ (error));
    }
  }, [source, key]);
  useEffect(() => {
    void ask();
  }, [ask]);
  function leave() {
    sessionStorage.removeItem(STORED);
    setKey("");
  }
  if (fault && [401, 403].includes(fault.status)) return html`<${Door} fault=${fault} given=${key !== ""} enter=${setKey} />`;
  if (fault) {
    return html`<h1>Console</h1><p class="note bad" role="alert">${fault.message}</p>
      <p><button type="button" onClick=${ask}>Try again</button></p>`;
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
        ${key && html`<button type="button" class="quiet" onClick=${leave}>Forget the key</button>`}
      </span>
    </div>
    ${operator.why_not && html`<p class="note">Read-only: ${operator.why_not}</p>`}
    <${Console} key=${chosen} source=${source} model=${chosen} several=${operator.models.length > 1} mayAct=${operator.may_act} />
    <p class="small soft foot">Registry ${operator.registry}; a server follows a change within about ${operator.watch_seconds} s.</p>
  <//>`;
}

/** @param {{fault: Refusal, given: boolean, enter: (key: string) => void}} props */
function Door({ fault, given, enter }) {
  const [typed, setTyped] = useState("");
  /** @param {Event} event */
  function submit(event) {
    event.preventDefault();
    if (typed.trim()) enter(typed.trim());
  }
  return html`<form class="card door stack" onSubmit=${submit}>
    <h1>Console</h1>
    <p>This server asks for an operator’s key. It is kept until this tab is closed.</p>
    ${given && html`<p class="note bad" role="alert">${fault.message}</p>`}
    <div class="field"><label for="key">Key</label>
      <input id="key" type="password" autocomplete="off" spellcheck=${false} value=${typed} onInput=${(/** @type {any} */ event) => setTyped(event.currentTarget.value)} /></div>
    <p><button type="submit" class="primary">Enter</button></p>
  </form>`;
}

const main = document.getElementById("main");
if (main) render(html`<${Page} />`, main);
