// npm run vendor: copies the libraries of package.json into assets/vendor, where the pages load them from, and writes
// their checksums and licences beside them. Two things are changed: a page cannot resolve the bare name "preact", and
// the source maps are not here.
import { createHash } from "node:crypto";
import { readFileSync, writeFileSync } from "node:fs";

const MODULES = new URL("../../node_modules/", import.meta.url);
const VENDOR = new URL("assets/vendor/", import.meta.url);
const FILES = {
  "preact.js": "preact/dist/preact.mjs",
  "hooks.js": "preact/hooks/dist/hooks.mjs",
  "htm.js": "htm/dist/htm.mjs",
  "uplot.js": "uplot/dist/uPlot.esm.js",
  "uplot.css": "uplot/dist/uPlot.min.css",
};

const rows = Object.entries(FILES).map(([name, source]) => {
  const text = readFileSync(new URL(source, MODULES), "utf8")
    .replaceAll(/from"preact"/g, 'from"./preact.js"')
    .replace(/\n\/\/# sourceMappingURL=.*/, "");
  writeFileSync(new URL(name, VENDOR), text);
  const { version, license, ...rest } = JSON.parse(
    readFileSync(new URL(`${source.split("/")[0]}/package.json`, MODULES), "utf8"),
  );
  const sum = createHash("sha256").update(text).digest("hex");
  return `| \`${name}\` | ${rest.name} ${version}, \`${source.slice(source.indexOf("/") + 1)}\` | ${license} | \`${sum}\` |`;
});

const licences = [...new Set(Object.values(FILES).map((source) => source.split("/")[0]))].map(
  (name) => `## ${name}\n\n${readFileSync(new URL(`${name}/LICENSE`, MODULES), "utf8").trim()}\n`,
);

writeFileSync(
  new URL("README.md", VENDOR),
  `# Libraries of others

Written by \`npm run vendor\`, from the packages that \`package-lock.json\` names; \`tests/unit/registry/site/test_vendor.py\` holds the files to
their checksums. Changed in them: \`from"preact"\` is \`from"./preact.js"\`, and they name no source maps.

| file | of | licence | SHA-256 |
|---|---|---|---|
${rows.join("\n")}

${licences.join("\n")}`,
);
