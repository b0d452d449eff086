// Errors in plain words: what happened, and what the visitor can do.
import { counted } from "./format.js";

/** @typedef {import("./api.js").ApiError} ApiError */

/** @type {Record<string, string>} */
const FIELDS = {
  prompt: "The prompt",
  negative_prompt: "The negative prompt",
  seed: "The seed",
  size: "The size",
  n: "The number of images",
  guidance_scale: "The guidance",
  deadline_ms: "The time limit",
  image: "The picture",
  strength: "The strength",
};

/** Whether it is none of the visitor's. In a stream, whose status was good, only the code says so. @param {ApiError} error */
export const isServersFault = (error) => error.status >= 500 || ["internal_error", "generation_failed"].includes(error.code);

/** @param {ApiError} error @param {boolean} auto  whether the tier was the server's choice @returns {string} a sentence */
export function inPlainWords(error, auto = false) {
  switch (error.code) {
    case "overloaded":
      return "The server is busy: its queue is full.";
    case "quota_exceeded":
      return "Your key's quota is used up for the moment.";
    case "unauthorized":
      return "The server does not know this key.";
    case "cancelled":
      return "Cancelled. Steps that were not begun cost nothing.";
    case "connection_lost":
      return "The connection to the server was lost. It may have been stopped or restarted; nothing more will come of this request.";
    case "deadline_exceeded":
      return `It was not done within the time limit. ${auto ? "Allow more time." : "Take a cheaper tier."}`;
    case "page_fault":
      return `This page has a fault: ${error.message}.`;
    case "not_ready":
      return `The server is not ready: ${error.message.replace(/^the /, "the ")}.`;
    case "stopping":
      return "The server is going down. Another one may take its place in a moment.";
    case "store_unavailable":
      return "The server cannot reach its registry now. Tiers work; schedules by name may not.";
    case "generation_failed":
      return `The image could not be made (${error.message}). The same request may work again.`;
    case "invalid_input": {
      const field = FIELDS[error.param ?? ""];
      const text = error.message.replace(`${error.param}: `, "");
      return field ? `${field} was refused: ${text}.` : `The server refused this: ${error.message}.`;
    }
    default:
      return isServersFault(error)
        ? `The server has a fault (${error.message}).`
        : `The server refused this: ${error.message}.`;
  }
}

/** @param {number} seconds @returns {string} */
export function waiting(seconds) {
  return `Try again in ${counted(seconds, "second")}.`;
}
