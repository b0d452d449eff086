// What the server has, asked for once and kept fresh: models, tiers, schedules.
import { ApiError, json } from "./api.js";
import { stepsOf } from "./strip.js";
import { useCallback, useEffect, useRef, useState } from "./ui.js";

/** @typedef {import("./api.js").Tiers} Tiers */
/** @typedef {import("./tiers.js").Strips} Strips */

const AGAIN = 2000; // milliseconds between two questions whether the server is ready
const FRESH = 30_000; // after so many the predicted times are asked for again

/** What a model offers; "" is the server's own. @param {string} model @returns {Promise<Tiers>} */
export function tiersOf(model) {
  return json(`v1/tiers${queryOf(model)}`);
}

/** @param {string} model @returns {string} */
function queryOf(model) {
  return model ? `?model=${encodeURIComponent(model)}` : "";
}

/** What the server has: its models, the tiers of one of them, and their schedules. @param {string} model */
export function useServer(model) {
  const [tiers, setTiers] = useState(/** @type {Tiers | null} */ (null));
  const [models, setModels] = useState(/** @type {string[]} */ ([]));
  const [strips, setStrips] = useState(/** @type {Strips} */ ({}));
  const [error, setError] = useState(/** @type {ApiError | null} */ (null));
  const known = useRef(new Set());
  const wanted = useRef(model);
  wanted.current = model;

  const look = useCallback(async () => {
    try {
      const found = await tiersOf(model);
      if (wanted.current !== model) return; // the visitor went on to another one meanwhile
      setTiers(found);
      setError(null);
      for (const { digest } of found.tiers.filter((tier) => !known.current.has(tier.digest))) {
        known.current.add(digest);
        json(`v1/schedules/${digest}${queryOf(model)}`).then(
          (one) => setStrips((before) => ({ ...before, [digest]: stepsOf(one.schedule) })),
          () => known.current.delete(digest),
        );
      }
      const listed = /** @type {import("./api.js").Model[]} */ ((await json("v1/models")).data);
      setModels([...new Set(listed.map((one) => one.root))]);
    } catch (fault) {
      if (wanted.current !== model) return;
      setError(ApiError.of(fault));
    }
  }, [model]);

  useEffect(() => {
    look();
  }, [look]);
  useEffect(() => {
    const waits = error && error.status !== 401;
    const timer = setInterval(
      () => document.visibilityState === "visible" && (waits || tiers) && look(),
      waits ? AGAIN : FRESH,
    );
    return () => clearInterval(timer);
  }, [look, error, tiers === null]);
  return { tiers, models, strips, error, look };
}
