// A request of the playground: what the visitor set, as bodies of the API and as programs that ask the same.

/** @typedef {import("./api.js").Tiers} Tiers */
/**
 * @typedef {Object} Wish  what the form says; empty texts and null are the server's own choice
 * @property {string} model
 * @property {string} prompt
 * @property {string} negative
 * @property {number} seed
 * @property {number | null} guidance
 * @property {string} size
 * @property {number} count
 * @property {string} tier
 * @property {number | null} deadline  in seconds, for auto
 * @property {string | null} image  a data: URL to start from
 * @property {number} strength
 */

export const AUTO = "auto";
const UNPROMPTED = "anything"; // what models get that ignore any prompt: a request has to have one

/** @param {Wish} wish @returns {Record<string, unknown>} fields that all routes have */
function common(wish) {
  return {
    prompt: wish.prompt || UNPROMPTED,
    ...(wish.negative ? { negative_prompt: wish.negative } : {}),
    ...(wish.model ? { model: wish.model } : {}),
    tier: wish.tier,
    seed: wish.seed,
    ...(wish.size ? { size: wish.size } : {}),
    ...(wish.guidance === null ? {} : { guidance_scale: wish.guidance }),
    ...(wish.tier === AUTO && wish.deadline ? { deadline_ms: Math.round(1000 * wish.deadline) } : {}),
    ...(wish.image ? { image: wish.image, strength: wish.strength } : {}),
  };
}

/** @param {Wish} wish @param {number} previews @returns {Record<string, unknown>} of a stream */
export function streamBody(wish, previews) {
  return { ...common(wish), n: wish.count, stream: true, progress: true, partial_images: previews };
}

/** @param {Wish} wish @returns {string} */
export function streamPath(wish) {
  return wish.image ? "v1/images/edits" : "v1/images/generations";
}

/** @param {Wish} wish @returns {Record<string, unknown>} of POST /generate; what stands for a file is named so */
function plainBody(wish) {
  const { image, ...body } = common(wish);
  return {
    ...body,
    ...(wish.count > 1 ? { num_images: wish.count } : {}),
    ...(image ? { image: "BASE64_OF_YOUR_PICTURE" } : {}),
  };
}

/** @param {string} text @returns {string} for a shell */
function quoted(text) {
  return `'${text.replaceAll("'", `'\\''`)}'`;
}

/** @param {unknown} value @returns {string} as Python writes it */
function python(value) {
  if (value === true) return "True";
  if (value === false) return "False";
  if (value === null || value === undefined) return "None";
  if (typeof value === "object") {
    return `{${Object.entries(value)
      .map(([name, one]) => `${JSON.stringify(name)}: ${python(one)}`)
      .join(", ")}}`;
  }
  return JSON.stringify(value).replace(/[\u2028\u2029]/g, (separator) => `\\u${separator.charCodeAt(0).toString(16)}`);
}

/** @param {Record<string, unknown>} fields @returns {string} */
function keywords(fields) {
  return Object.entries(fields)
    .map(([name, value]) => `${name}=${python(value)}`)
    .join(", ");
}

/** @param {Wish} wish @param {string} server @param {boolean} withKey @returns {string} */
export function asCurl(wish, server, withKey) {
  const key = withKey ? ` -H "Authorization: Bearer $FLEXIFFUSION_API_KEY"` : "";
  return `curl -s ${server}/generate${key} -H 'content-type: application/json' \\
  -d ${quoted(JSON.stringify(plainBody(wish)))} \\
  | python3 -c 'import base64, json, sys; open("image.png", "wb").write(base64.b64decode(json.load(sys.stdin)["images"][0]))'`;
}

/** @param {Wish} wish @param {string} server @param {boolean} withKey @returns {string} */
export function asPython(wish, server, withKey) {
  const token = withKey ? `, token=os.environ["FLEXIFFUSION_API_KEY"]` : "";
  return `import base64${withKey ? ", os" : ""}
import bentoml

with bentoml.SyncHTTPClient(${JSON.stringify(server)}${token}) as client:
    answer = client.generate(${keywords(plainBody(wish))})
for i, image in enumerate(answer["images"]):
    open(f"image-{i}.png", "wb").write(base64.b64decode(image))`;
}

/** @param {Wish} wish @param {string} server @param {boolean} withKey @returns {string} */
export function asOpenAI(wish, server, withKey) {
  const { prompt, model, size, image, ...own } = common(wish);
  const fields = { prompt, ...(model ? { model } : {}), ...(size ? { size } : {}), n: wish.count };
  const key = withKey ? `os.environ["FLEXIFFUSION_API_KEY"]` : `"none"`;
  const call = image ? `edit(image=open("picture.png", "rb"), ` : "generate(";
  return `import base64${withKey ? ", os" : ""}
import openai

client = openai.OpenAI(base_url=${JSON.stringify(`${server}/v1`)}, api_key=${key})
answer = client.images.${call}${keywords(fields)}, response_format="b64_json", extra_body=${python(own)})
for i, image in enumerate(answer.data):
    open(f"image-{i}.png", "wb").write(base64.b64decode(image.b64_json))`;
}

/** @returns {number} a seed that people can read and type */
export function drawnSeed() {
  return Math.floor(Math.random() * 1_000_000);
}
