// A registry as it was when this page was made: the console's views, with their documents in the page.
import { Fragment, html, render, useMemo, useState } from "../ui.js";
import { Console } from "./app.js";
import { embedded } from "./source.js";
import { When } from "./words.js";

/** @typedef {{registry: string, time: string, models: Record<string, Record<string, unknown>>, reports: {href: string, title: string}[]}} Documents */

/** @param {{documents: Documents}} props */
function Site({ documents }) {
  const names = Object.keys(documents.models);
  const [model, setModel] = useState(names[0] ?? "");
  const source = useMemo(() => embedded(documents.models[model] ?? {}), [documents, model]);
  const reports =
    documents.reports.length > 0 &&
    html`<section class="stack" aria-labelledby="reports"><h2 id="reports">Search reports</h2>
      <ul class="plain">${documents.reports.map(({ href, title }) => html`<li key=${href}><a href=${href}>${title}</a></li>`)}</ul></section>`;
  return html`<${Fragment}>
    <div class="row spread">
      <h1>Registry</h1>
      <span class="row small">
        ${
          names.length > 1 &&
          html`<label class="row">Model <select value=${model} onChange=${(/** @type {any} */ event) => setModel(event.currentTarget.value)}>
          ${names.map((name) => html`<option key=${name}>${name}</option>`)}</select></label>`
        }
        <span class="soft">as of <${When} when=${documents.time} /></span>
      </span>
    </div>
    ${!names.length && html`<p class="note">The registry has no model yet.</p>`}
    ${
      model
        ? html`<${Console} key=${model} source=${source} model=${model} several=${false} mayAct=${false}>${reports}<//>`
        : html`<div class="console">${reports}</div>`
    }
    <p class="small soft foot">Registry ${documents.registry}. Nothing can be done here: python -m registry does that, and the console of a server.</p>
  <//>`;
}

const main = document.getElementById("main");
const text = document.getElementById("documents")?.textContent;
if (main && text) render(html`<${Site} documents=${JSON.parse(text)} />`, main);
