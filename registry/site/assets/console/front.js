// The front: what schedules cost against what they are worth, and which tiers mean which.
import { html, useCallback, useMemo, useRef, useState } from "../ui.js";
import { Chart, dressed, FONT } from "./chart.js";
import { Term } from "./term.js";
import { Cells, cost, decibels, known, rfid, short, When } from "./words.js";

/** @typedef {import("./types.js").Version} Version */
/** @typedef {import("./types.js").Front} Front */
/** @typedef {Version & {figures: {relative_cost: number, rfid: number}}} Measured */
/** @typedef {(digest: string) => void} Open */

const REACH = 24; // pixels within which a point is pointed at
const FEW = 12; // versions that are listed at first

/**
 * One entry for each digest, the one with the lowest number, cheapest first; without what was not measured.
 * @param {Version[]} versions newest first
 * @returns {Measured[]}
 */
export function measured(versions) {
  const first = new Map(versions.map((version) => [version.digest, version]));
  const all = [...first.values()].filter((version) => version.figures?.relative_cost && version.figures.rfid);
  return /** @type {Measured[]} */ (all).sort((a, b) => a.figures.relative_cost - b.figures.relative_cost);
}

/** @param {{front: Front, open: Open}} props */
export function FrontChart({ front, open }) {
  const points = useMemo(() => measured(front.versions), [front]);
  const [pointed, setPointed] = useState(
    /** @type {{version: Measured, left: number, top: number, width: number} | null} */ (null),
  );
  const nearest = useRef(/** @type {Measured | null} */ (null));
  const data = useMemo(() => {
    const of = (/** @type {(version: Measured) => boolean} */ which) => points.map((v) => (which(v) ? v.figures.rfid : null));
    return /** @type {import("uplot").AlignedData} */ ([
      points.map((version) => version.figures.relative_cost),
      of((version) => !version.on_front && !version.tiers.length),
      of((version) => version.on_front),
      of((version) => version.tiers.length > 0),
    ]);
  }, [points]);
  const options = useCallback(
    (/** @type {import("./chart.js").Palette} */ colours) => {
      const dots = (/** @type {string} */ colour, /** @type {number} */ size, /** @type {string} */ fill) => ({
        stroke: colour,
        paths: () => null,
        points: { show: true, size, width: 1.5, stroke: colour, fill },
      });
      const ticks = (/** @type {import("uplot")} */ _, /** @type {(number | null)[]} */ values) =>
        values.map((value) =>
          value && "125".includes(value.toExponential(0)[0] ?? "") ? String(Number(value.toPrecision(2))) : "",
        );
      const all = (/** @type {import("uplot")} */ _, /** @type {number[]} */ splits) => splits;
      return /** @type {Omit<import("uplot").Options, "width" | "height">} */ ({
        scales: { x: { time: false, distr: 3 }, y: { distr: 3 } },
        series: [
          {},
          dots(colours.soft, 6, colours.surface),
          {
            stroke: colours.full,
            width: 1.5,
            dash: [4, 4],
            spanGaps: true,
            points: { show: true, size: 7, fill: colours.full },
          },
          dots(colours.partial, 13, "transparent"),
        ],
        axes: [
          dressed(colours, { label: "relative cost", values: ticks, filter: all }),
          dressed(colours, { label: "rFID (lower is nearer to the teacher)", values: ticks, filter: all, size: 56 }),
        ],
        padding: [16, 16, 0, 0],
        cursor: { x: false, y: false, points: { show: false }, drag: { x: false, y: false } },
        hooks: {
          setCursor: [
            (plot) => {
              const at = point(plot, points, plot.cursor.left ?? -1, plot.cursor.top ?? -1);
              nearest.current = at?.version ?? null;
              plot.over.style.cursor = at ? "pointer" : "default";
              setPointed((before) => (before?.version === at?.version ? before : at));
            },
          ],
          draw: [(plot) => tierNames(plot, points, colours)],
        },
      });
    },
    [points],
  );
  if (!points.length) {
    return html`<p class="note">No version shown has both a cost and an rFID: a search measures them and publishes what it found.</p>`;
  }
  const label = `${points.length} schedules by relative cost and rFID; the table below says the same.`;
  const press = () => nearest.current && open(nearest.current.digest);
  return html`<div class="plot" onClick=${press} onMouseLeave=${() => setPointed(null)}>
    <${Chart} data=${data} options=${options} height=${320} label=${label} />
    <p class="small soft legend"><span class="dashed">the <${Term} word="front" /></span> <span class="ring">a <${Term} word="tier" />’s</span> <span class="dot">others</span></p>
    ${pointed && html`<${Pointed} ...${pointed} />`}
  </div>`;
}

/** @param {{version: Measured, left: number, top: number, width: number}} props */
function Pointed({ version, left, top, width }) {
  const { figures, tiers, digest } = version;
  const wide = 260;
  const style = { left: `${Math.max(0, Math.min(left + 16, width - wide))}px`, top: `${top + 16}px`, width: `${wide}px` };
  return html`<div class="pointed card" style=${style} aria-hidden="true">
    <p class="row spread"><b>${tiers.join(", ") || `version ${version.version}`}</b> <span class="mono soft">${short(digest)}</span></p>
    <${Cells} figures=${figures} />
    <p class="small">cost ${cost(figures.relative_cost)} · rFID ${rfid(figures.rfid)} · PSNR ${known(figures.psnr, decibels)}</p>
  </div>`;
}

/**
 * The point next to a place in the plot, with where it lies in the whole picture.
 * @param {import("uplot")} plot @param {Measured[]} points @param {number} left @param {number} top
 */
function point(plot, points, left, top) {
  let found = null;
  let least = REACH;
  if (left < 0) return null;
  for (const version of points) {
    const x = plot.valToPos(version.figures.relative_cost, "x");
    const y = plot.valToPos(version.figures.rfid, "y");
    const away = Math.hypot(x - left, y - top);
    if (away < least) {
      least = away;
      found = { version, left: x + plot.over.offsetLeft, top: y + plot.over.offsetTop, width: plot.width };
    }
  }
  return found;
}

/** @param {import("uplot")} plot @param {Measured[]} points @param {import("./chart.js").Palette} colours */
function tierNames(plot, points, colours) {
  const { ctx } = plot;
  const scale = devicePixelRatio;
  ctx.save();
  ctx.font = FONT.replace("12px", `600 ${12 * scale}px`);
  ctx.fillStyle = colours.text;
  ctx.strokeStyle = colours.page;
  ctx.lineWidth = 4 * scale;
  ctx.lineJoin = "round";
  ctx.textAlign = "left";
  const right = plot.bbox.left + plot.bbox.width;
  const height = 14 * scale;
  const named = points.filter((version) => version.tiers.length);
  const place = (/** @type {Measured} */ { figures }) => ({
    x: plot.valToPos(figures.relative_cost, "x", true),
    y: plot.valToPos(figures.rfid, "y", true),
  });
  // What no name may cover: the rings, and the names before it.
  const taken = named.map(place).map(({ x, y }) => ({ left: x - 8 * scale, right: x + 8 * scale, y: y + 4 * scale }));
  for (const version of named) {
    const { tiers } = version;
    const { x, y } = place(version);
    const text = tiers.join(", ");
    const { width } = ctx.measureText(text);
    const left = x + 12 * scale + width < right ? x + 11 * scale : x - 11 * scale - width;
    const free = (/** @type {number} */ at) =>
      taken.every((other) => other.left > left + width || other.right < left || Math.abs(other.y - at) > height);
    const at = [y - 7 * scale, y + 17 * scale, y - 23 * scale].find(free) ?? y - 7 * scale;
    taken.push({ left, right: left + width, y: at });
    ctx.strokeText(text, left, at);
    ctx.fillText(text, left, at);
  }
  ctx.restore();
}

/** @param {{front: Front, open: Open}} props */
export function Versions({ front, open }) {
  const [all, setAll] = useState(false);
  const shown = all ? front.versions : front.versions.slice(0, FEW);
  const hidden = front.versions.length - shown.length;
  return html`<div class="stack">
    <div class="scroll" role="region" aria-label="All versions" tabindex="0">
      <table>
        <thead><tr>
          <th class="number" scope="col"><${Term} word="version" /></th>
          <th scope="col"><${Term} word="schedule" /></th>
          <th class="number" scope="col"><${Term} word="relative cost">cost<//></th>
          <th class="number" scope="col"><${Term} word="rFID" /></th>
          <th class="number" scope="col"><${Term} word="PSNR" /></th>
          <th scope="col"><${Term} word="tier">tiers<//></th>
          <th scope="col">published</th>
        </tr></thead>
        <tbody>${shown.map((version) => html`<${VersionLine} key=${version.version} version=${version} open=${open} />`)}</tbody>
      </table>
    </div>
    <p class="row small soft">
      ${hidden > 0 && html`<button type="button" onClick=${() => setAll(true)}>Show ${hidden} more</button>`}
      ${front.older > 0 && html`<span>${front.older} older versions are not shown: python -m registry list has them.</span>`}
    </p>
  </div>`;
}

/** @param {{version: Version, open: Open}} props */
function VersionLine({ version, open }) {
  const { figures, fault } = version;
  return html`<tr>
    <td class="number">${version.version}</td>
    <td class="strips">${figures ? html`<${Cells} figures=${figures} />` : html`<span class="bad">${fault}</span>`}
      <button type="button" class="quiet link mono" onClick=${() => open(version.digest)} disabled=${!figures}
        aria-label=${`Schedule ${short(version.digest)} of version ${version.version}`}>${short(version.digest)}</button></td>
    <td class="number">${known(figures?.relative_cost, cost)}</td>
    <td class="number">${known(figures?.rfid, rfid)}${version.on_front && html` <${Term} word="front">◆<span class="unseen">on the front</span><//>`}</td>
    <td class="number">${known(figures?.psnr, decibels)}</td>
    <td>${version.tiers.join(", ")}</td>
    <td class="published"><${When} when=${version.time} /> <span class="soft">${version.author}</span><span class="soft note-line" title=${version.note}>${version.note}</span></td>
  </tr>`;
}
