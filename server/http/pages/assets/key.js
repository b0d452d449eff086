// Asks for the API key of a server that has keys. It stays in this tab: sessionStorage, and nowhere else.
import { key } from "./api.js";
import { html, useState } from "./ui.js";

/** @param {{refused: boolean, onKey: () => void}} props  refused: one was tried and was not known; onKey: there is a new one */
export function KeyForm({ refused, onKey }) {
  const [typed, setTyped] = useState("");
  const open = (/** @type {Event} */ event) => {
    event.preventDefault();
    if (!typed.trim()) return;
    key.set(typed.trim());
    onKey();
  };
  return html`<form class="card key-form stack" onSubmit=${open}>
    <div>
      <h2>This server asks for an API key</h2>
      <p class="soft small">It is kept until you close this tab, and sent to this server only.</p>
    </div>
    ${refused && html`<p class="note bad" role="alert">The server does not know this key.</p>`}
    <div class="field">
      <label for="api-key">API key</label>
      <input id="api-key" type="password" autocomplete="off" spellcheck=${false} value=${typed}
        onInput=${(/** @type {any} */ event) => setTyped(event.target.value)} />
    </div>
    <div><button class="primary" type="submit">Open</button></div>
  </form>`;
}
