// What the operators' routes answer (server/operator/views.py, registry/site/views.py), as far as the console shows it: types only.
export {};

/** @typedef {"full" | "partial" | "null"} Kind */

/**
 * @typedef {{
 *   strip: string;
 *   steps: Record<Kind, number>;
 *   teacher_steps: number;
 *   solver: string;
 *   relative_cost: number | null;
 *   macs: number | null;
 *   rfid: number | null;
 *   psnr: number | null;
 *   images: number | null;
 *   clip_score: number | null;
 *   accuracy: number | null;
 *   guidance: number[];
 *   sizes: string[];
 * }} Figures
 */

/**
 * @typedef {{
 *   version: number;
 *   digest: string;
 *   time: string;
 *   author: string;
 *   note: string;
 *   tiers: string[];
 *   on_front: boolean;
 *   figures: Figures | null;
 *   fault: string | null;
 * }} Version
 */

/** @typedef {{ model: string; versions: Version[]; older: number }} Front */

/**
 * @typedef {{
 *   digest: string;
 *   version: number;
 *   time: string;
 *   author: string;
 *   reason: string;
 *   action: "promote" | "rollback";
 *   host: string;
 * }} Move
 */

/**
 * @typedef {{
 *   tier: string;
 *   digest: string | null;
 *   version: number | null;
 *   moves: number;
 *   back: { digest: string; version: number } | null;
 *   history: Move[];
 *   figures: Figures | null;
 *   candidate: Candidate | null;
 *   fault: string | null;
 * }} Tier
 */

/**
 * @typedef {{
 *   candidate: { tier: string; digest: string; version: number; share: number; until: string };
 *   status: "running" | "stopped" | "over" | "promoted";
 *   time: string;
 *   author: string;
 *   reason: string;
 * }} Candidate
 */

/**
 * @typedef {{
 *   digest: string;
 *   requests: number;
 *   images: number;
 *   failed: number;
 *   rfid: { active: number; candidate: number } | null;
 *   figures: { figure: string; active: number; candidate: number; by: "difference" | "ratio"; effect: Interval | null }[];
 * }} Pair
 */

/** @typedef {{ report: { said: string; meant: { digest: string } | null; pairs: Pair[] }; time: string }} Shadow */

/**
 * @typedef {{
 *   model: string;
 *   tiers: Tier[];
 *   default?: string;
 *   in_force?: { tier: string; digest: string; version: number | null }[];
 *   not_served?: { tier: string; reason: string }[];
 *   not_compared?: { tier: string; reason: string }[];
 *   second_person?: string[];
 *   requests?: PromotionRequest[];
 * }} Tiers
 */

/**
 * @typedef {{
 *   id: string;
 *   tier: string;
 *   version: number;
 *   digest: string;
 *   author: string;
 *   reason: string;
 *   time: string;
 *   until: string;
 *   voices: string[];
 * }} PromotionRequest
 */

/**
 * @typedef {{
 *   model: string;
 *   digest: string;
 *   versions: number[];
 *   tiers: string[];
 *   figures: Figures;
 *   signature: { signers: string[]; state: string; by: string | null; text: string };
 *   artifacts: string[];
 *   document: Record<string, unknown> & { provenance?: Record<string, unknown> | null };
 * }} Schedule
 */

/**
 * @typedef {{
 *   a: Figures;
 *   b: Figures;
 *   same: boolean;
 *   steps: number[] | null;
 *   fields: Record<string, [unknown, unknown]>;
 *   figures: Record<string, [number | null, number | null]>;
 * }} Difference
 */

/** @typedef {{ name: string; digest: string; weight: number }} Arm */

/** @typedef {{ metric: string; compare: string; limit: number; minimum_sample: number; consecutive: number }} Guardrail */

/** @typedef {{ share: number; minutes: number; units: number }} Stage */

/**
 * @typedef {{
 *   action: string;
 *   status: string;
 *   version: number;
 *   stage: number;
 *   time: string;
 *   author: string;
 *   reason: string;
 *   evidence?: Record<string, unknown> | null;
 * }} Transition
 */

/**
 * @typedef {{
 *   name: string;
 *   status: string;
 *   version: number;
 *   stage: number;
 *   share: number;
 *   transitions: number;
 *   history: Transition[];
 *   declaration: {
 *     hypothesis: string;
 *     tier: string;
 *     arms: Arm[];
 *     control: string;
 *     ramp: Stage[];
 *     primary: { metric: string; minimal_effect: number; goal: string };
 *     guardrails: Guardrail[];
 *     minimum_units: number;
 *     maximum_units: number;
 *     end: string;
 *   };
 * }} Experiment
 */

/** @typedef {{ model: string; experiments: Experiment[]; faults: string[] }} Experiments */

/** @typedef {{ estimate: number; low: number; high: number }} Interval */

/**
 * @typedef {{
 *   metric: string;
 *   arm: string;
 *   value: number | null;
 *   control: number | null;
 *   difference: Interval | null;
 *   ratio: Interval | null;
 * }} Comparison
 */

/**
 * @typedef {{
 *   report: {
 *     arms: {
 *       name: string;
 *       units: number;
 *       requests: number;
 *       fallbacks: number;
 *       service_p95: number | null;
 *       rfid: number | null;
 *     }[];
 *     comparisons: Comparison[];
 *     verdict: { outcome: string; arm: string | null; reason: string; mismatch: number | null };
 *   };
 *   course: { time: string; arm: string; units: number; effect: Interval | null }[];
 *   by_ratio: boolean;
 *   gate: string | null;
 *   events: number;
 *   damaged: string[];
 *   time: string;
 * }} Report
 */

/** @typedef {{ count: number; sum: number; bounds: number[]; counts: number[] }} Histogram */

/**
 * @typedef {{
 *   tier: string;
 *   requests: Record<string, number>;
 *   latency: Histogram;
 *   images: number;
 *   macs: number;
 *   teacher_macs: number;
 *   steps: Record<Kind, number>;
 * }} LiveTier
 */

/**
 * @typedef {{
 *   model: string;
 *   state: string;
 *   fault: string | null;
 *   loaded_in: number;
 *   memory_bytes: number;
 *   queue_images: number;
 *   inflight_images: number;
 *   waves: { kind: string; waves: number; rows: number; seconds: number }[];
 *   tiers: LiveTier[];
 * }} LiveModel
 */

/**
 * @typedef {{
 *   time: number;
 *   of: string;
 *   processes: number;
 *   queue_seconds: number;
 *   background_seconds: number;
 *   refused: Record<string, number>;
 *   jobs: Record<string, number>;
 *   models: LiveModel[];
 * }} Live
 */

/**
 * @typedef {{
 *   name: string;
 *   may_act: boolean;
 *   why_not: string | null;
 *   models: string[];
 *   registry: string;
 *   watch_seconds: number;
 * }} Operator
 */

/**
 * Where the console has its documents from: a server, which can be asked again and acted on (`live`), or the page itself. What is
 * refused is thrown as a `Refusal`. `compares`: whether a schedule can be held against another.
 * @typedef {{
 *   live: boolean;
 *   get<T>(path: string): Promise<T>;
 *   act<T>(path: string, body: Record<string, unknown>): Promise<T>;
 *   compares(a: string, b: string): boolean;
 * }} Source
 */

/** @typedef {{status: number, message: string}} Refusal  what a server, or the way to it, says no with; its status, 0 where none came */
