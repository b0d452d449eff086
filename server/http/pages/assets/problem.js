// What went wrong, said where it is seen and heard, with a countdown where waiting helps.
import { html, useEffect, useState } from "./ui.js";
import { inPlainWords, isServersFault, waiting } from "./words.js";

/** @typedef {import("./api.js").ApiError} ApiError */

/**
 * Seconds that are left of a wait.
 * @param {number} until  by `Date.now`
 * @returns {number} 0 when it is over
 */
export function useCountdown(until) {
  const left = () => Math.max(0, Math.ceil((until - Date.now()) / 1000));
  const [seconds, setSeconds] = useState(left);
  useEffect(() => {
    setSeconds(left());
    if (left() === 0) return;
    const timer = setInterval(() => {
      setSeconds(left());
      if (left() === 0) clearInterval(timer);
    }, 250);
    return () => clearInterval(timer);
  }, [until]);
  return seconds;
}

/** @param {ApiError} error @returns {number} until when to wait, by `Date.now`; 0 where waiting does not help */
export function waitOf(error) {
  const helps = [429, 503].includes(error.status) && error.retryAfter !== undefined;
  return helps ? Date.now() + 1000 * (error.retryAfter ?? 0) : 0;
}

/**
 * Heard once: the countdown beside it is only seen.
 * @param {{error: ApiError, seconds: number, auto?: boolean}} props  auto: whether the tier was the server's choice
 */
export function Problem({ error, seconds, auto = false }) {
  const calm = ["cancelled", "overloaded", "quota_exceeded", "not_ready"].includes(error.code);
  return html`<div class=${calm ? "note warn" : "note bad"}>
    <p role="alert">${inPlainWords(error, auto)}</p>
    ${seconds > 0 && html`<p class="countdown" aria-hidden="true">${waiting(seconds)}</p>`}
    ${error.requestId && isServersFault(error) && html`<p class="small">Request ${error.requestId}</p>`}
  </div>`;
}
