// Documents that are asked for again and again, while somebody looks at the page.
import { useCallback, useEffect, useRef, useState } from "../ui.js";

/** @typedef {import("./types.js").Source} Source */
/** @typedef {import("./types.js").Refusal} Refusal */

/**
 * @template T
 * @param {Source} source
 * @param {string | null} path null asks nothing
 * @param {number} seconds between two answers; 0 asks once
 * @returns {{found: T | null, fault: Refusal | null, again: () => Promise<void>}} a fault leaves what was found before
 */
export function useAsked(source, path, seconds) {
  const [found, setFound] = useState(/** @type {{path: string, value: T} | null} */ (null));
  const [fault, setFault] = useState(/** @type {Refusal | null} */ (null));
  const wanted = useRef(path);
  wanted.current = path;
  const again = useCallback(async () => {
    if (path === null) return;
    try {
      const value = /** @type {T} */ (await source.get(path));
      if (wanted.current !== path) return;
      setFound({ path, value });
      setFault(null);
    } catch (error) {
      if (wanted.current === path) setFault(/** @type {Refusal} */ (error));
    }
  }, [source, path]);
  useEffect(() => {
    let timer = 0;
    let over = false;
    const round = async (/** @type {boolean} */ asks) => {
      if (asks) await again();
      if (!over && seconds && source.live) timer = window.setTimeout(() => round(!document.hidden), seconds * 1000);
    };
    void round(true); // the first answer may be the only one: a page may be opened where nobody looks yet
    return () => {
      over = true;
      window.clearTimeout(timer);
    };
  }, [again, seconds, source]);
  return { found: found?.path === path ? found.value : null, fault, again };
}
