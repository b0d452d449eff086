// Words with their meaning from the glossary: pointed at, focused or pressed, a word shows what it means. Escape takes it away.
import { html, useId } from "../ui.js";
import { GLOSSARY } from "./glossary.js";

/** @typedef {keyof typeof GLOSSARY} Word */

const MARGIN = 8;

/** @type {HTMLElement | null} */
let bubble = null;

/** @param {Element} near @param {string} text */
function show(near, text) {
  hide();
  bubble = document.createElement("div");
  bubble.className = "bubble";
  bubble.setAttribute("aria-hidden", "true"); // who does not see it hears it as the word's description
  bubble.textContent = text;
  const parent = near.closest("dialog") ?? document.body; // an open dialog lies above all else
  parent.append(bubble);
  const at = near.getBoundingClientRect();
  const left = Math.min(at.left, window.innerWidth - bubble.offsetWidth - MARGIN);
  const below = at.bottom + MARGIN + bubble.offsetHeight < window.innerHeight;
  bubble.style.left = `${Math.max(MARGIN, left)}px`;
  bubble.style.top = `${below ? at.bottom + 4 : at.top - bubble.offsetHeight - 4}px`;
}

function hide() {
  bubble?.remove();
  bubble = null;
}

/** @param {KeyboardEvent} event */
function dismiss(event) {
  if (event.key === "Escape" && bubble) {
    hide();
    event.preventDefault();
    event.stopPropagation();
  }
}

/**
 * @param {{word: Word, children?: import("../ui.js").Children}} props  children: how it is written here, if not as the word itself
 */
export function Term({ word, children }) {
  const id = useId();
  const meaning = GLOSSARY[word];
  /** @param {Event} event */
  const shown = (event) => show(/** @type {Element} */ (event.currentTarget), `${word}: ${meaning}`);
  return html`<button type="button" class="term" aria-describedby=${id} onMouseEnter=${shown} onFocus=${shown} onClick=${shown}
    onMouseLeave=${hide} onBlur=${hide} onKeyDown=${dismiss}>${children ?? word}<span hidden id=${id}>${meaning}</span></button>`;
}
