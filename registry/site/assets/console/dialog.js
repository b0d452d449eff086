// Windows above the page, and the questions in them: nothing is done without a reason, and without having seen what changes.
import { html, useEffect, useId, useRef, useState } from "../ui.js";

/** @typedef {import("./types.js").Refusal} Refusal */
/** @typedef {import("../ui.js").Children} Children */

/** @param {{title: string, close: () => void, wide?: boolean, children?: Children}} props */
export function Dialog({ title, close, wide = false, children }) {
  const dialog = useRef(/** @type {HTMLDialogElement | null} */ (null));
  const id = useId();
  useEffect(() => {
    const [shown, before] = [dialog.current, document.activeElement];
    shown?.showModal();
    return () => {
      shown?.close(); // else all beside it takes no focus
      if (before instanceof HTMLElement) before.focus();
    };
  }, []);
  return html`<dialog ref=${dialog} class=${wide ? "wide" : ""} aria-labelledby=${id} onClose=${close}>
    <div class="row spread head"><h2 id=${id}>${title}</h2>
      <button type="button" class="quiet" onClick=${() => dialog.current?.close()}>Close</button></div>
    ${children}
  </dialog>`;
}

/**
 * A question that is answered with a reason, and a button that does it.
 * @param {{title: string, verb: string, danger?: boolean, children?: Children, close: () => void, ready?: boolean,
 *   act: (reason: string) => Promise<void>, renew: () => Promise<void>}} props  ready: whether all else is said; act: raises what
 *   the server refuses; renew: asks about what is so by now, after somebody else was first: nothing else changes an open question
 */
export function ReasonDialog({ title, verb, danger = false, children, close, ready = true, act, renew }) {
  const [reason, setReason] = useState("");
  const [busy, setBusy] = useState(false);
  const [fault, setFault] = useState(/** @type {Refusal | null} */ (null));
  const id = useId();
  /** @param {Event} event */
  async function submit(event) {
    event.preventDefault();
    if (busy || !reason.trim() || !ready) return;
    setBusy(true);
    setFault(null);
    try {
      await act(reason.trim());
      close();
    } catch (error) {
      setFault(/** @type {Refusal} */ (error));
    }
    setBusy(false);
  }
  async function look() {
    try {
      await renew();
      setFault(null);
    } catch (error) {
      setFault(/** @type {Refusal} */ (error));
    }
  }
  return html`<${Dialog} title=${title} close=${close} wide=${true}>
    <form class="stack" onSubmit=${submit}>
      ${children}
      <div class="field">
        <label for=${id}>Reason: it is kept in the history</label>
        <textarea id=${id} rows="2" required maxlength="2000" value=${reason}
          onInput=${(/** @type {any} */ event) => setReason(event.currentTarget.value)}></textarea>
      </div>
      ${
        fault &&
        html`<div class="note bad" role="alert"><p>${fault.message}</p>
        ${fault.status === 409 && html`<p><button type="button" onClick=${look}>Show the current state</button></p>`}</div>`
      }
      <div class="row">
        <button type="submit" class=${danger ? "danger" : "primary"} disabled=${busy || !reason.trim() || !ready || fault?.status === 409}>${verb}</button>
        <button type="button" onClick=${close}>Cancel</button>
      </div>
    </form>
  <//>`;
}
