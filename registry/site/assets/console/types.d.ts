// What the operators' routes answer: server/operator/views.py and registry/site/views.py, as far as the console shows it.
export type Kind = "full" | "partial" | "null";
export type Figures = {
  strip: string;
  steps: Record<Kind, number>;
  teacher_steps: number;
  solver: string;
  relative_cost: number | null;
  macs: number | null;
  rfid: number | null;
  psnr: number | null;
  images: number | null;
  clip_score: number | null;
  accuracy: number | null;
  guidance: number[];
  sizes: string[];
};
export type Version = {
  version: number;
  digest: string;
  time: string;
  author: string;
  note: string;
  tiers: string[];
  on_front: boolean;
  figures: Figures | null;
  fault: string | null;
};
export type Front = { model: string; versions: Version[]; older: number };
export type Move = {
  digest: string;
  version: number;
  time: string;
  author: string;
  reason: string;
  action: "promote" | "rollback";
  host: string;
};
export type Tier = {
  tier: string;
  digest: string | null;
  version: number | null;
  moves: number;
  back: { digest: string; version: number } | null;
  history: Move[];
  figures: Figures | null;
  fault: string | null;
};
export type Tiers = {
  model: string;
  tiers: Tier[];
  default?: string;
  in_force?: { tier: string; digest: string; version: number | null }[];
  not_served?: { tier: string; reason: string }[];
};
export type Schedule = {
  model: string;
  digest: string;
  versions: number[];
  tiers: string[];
  figures: Figures;
  signature: { signers: string[]; state: string; by: string | null; text: string };
  artifacts: string[];
  document: Record<string, unknown> & { provenance?: Record<string, unknown> | null };
};
export type Difference = {
  a: Figures;
  b: Figures;
  same: boolean;
  steps: number[] | null;
  fields: Record<string, [unknown, unknown]>;
  figures: Record<string, [number | null, number | null]>;
};
export type Arm = { name: string; digest: string; weight: number };
export type Guardrail = { metric: string; compare: string; limit: number; minimum_sample: number; consecutive: number };
export type Stage = { share: number; minutes: number; units: number };
export type Transition = {
  action: string;
  status: string;
  version: number;
  stage: number;
  time: string;
  author: string;
  reason: string;
  evidence?: Record<string, unknown> | null;
};
export type Experiment = {
  name: string;
  status: string;
  version: number;
  stage: number;
  share: number;
  transitions: number;
  history: Transition[];
  declaration: {
    hypothesis: string;
    tier: string;
    arms: Arm[];
    control: string;
    ramp: Stage[];
    primary: { metric: string; minimal_effect: number; goal: string };
    guardrails: Guardrail[];
    minimum_units: number;
    maximum_units: number;
    end: string;
  };
};
export type Experiments = { model: string; experiments: Experiment[]; faults: string[] };
export type Interval = { estimate: number; low: number; high: number };
export type Comparison = {
  metric: string;
  arm: string;
  value: number | null;
  control: number | null;
  difference: Interval | null;
  ratio: Interval | null;
};
export type Report = {
  report: {
    arms: {
      name: string;
      units: number;
      requests: number;
      fallbacks: number;
      service_p95: number | null;
      rfid: number | null;
    }[];
    comparisons: Comparison[];
    verdict: { outcome: string; arm: string | null; reason: string; mismatch: number | null };
  };
  course: { time: string; arm: string; units: number; effect: Interval | null }[];
  by_ratio: boolean;
  gate: string | null;
  events: number;
  damaged: string[];
  time: string;
};
export type Histogram = { count: number; sum: number; bounds: number[]; counts: number[] };
export type LiveTier = {
  tier: string;
  requests: Record<string, number>;
  latency: Histogram;
  images: number;
  macs: number;
  teacher_macs: number;
  steps: Record<Kind, number>;
};
export type LiveModel = {
  model: string;
  state: string;
  fault: string | null;
  loaded_in: number;
  memory_bytes: number;
  queue_images: number;
  inflight_images: number;
  waves: { kind: string; waves: number; rows: number; seconds: number }[];
  tiers: LiveTier[];
};
export type Live = {
  time: number;
  of: string;
  processes: number;
  queue_seconds: number;
  background_seconds: number;
  refused: Record<string, number>;
  jobs: Record<string, number>;
  models: LiveModel[];
};
export type Operator = {
  name: string;
  may_act: boolean;
  why_not: string | null;
  models: string[];
  registry: string;
  watch_seconds: number;
};

/** Where the console has its documents from: a server, or the page itself. */
export type Source = {
  /** Whether it is a running server, which can be asked again and acted on. */
  live: boolean;
  /** @throws Refusal */
  get<T>(path: string): Promise<T>;
  /** @throws Refusal */
  act<T>(path: string, body: Record<string, unknown>): Promise<T>;
  /** Whether a schedule can be held against another. */
  compares(a: string, b: string): boolean;
};
