"""What the dashboard shows: titles, what they mean and how it is computed, and the queries.

Queries go to the exported metrics themselves, so the dashboard works without the recording rules.
"""

from __future__ import annotations

from deploy.grafana.panel import Panel, PanelRow, quantiles, rate

ROWS = [
    PanelRow(
        "Requests",
        [
            Panel(
                "Latency by tier",
                "From a valid request to its answer, of requests that were answered. Only as exact as the histogram's buckets.",
                "s",
                quantiles("flexi_request_seconds", "tier", ', outcome="ok"'),
            ),
            Panel(
                "Requests by tier and outcome",
                "ok, repeat (some images were made before), cancelled (the client left), deadline, rejected (429), error.",
                "reqps",
                {"{{tier}} {{outcome}}": rate("flexi_request_seconds_count", "tier", "outcome")},
                stacked=True,
            ),
            Panel(
                "Answers by status, refusals by reason",
                "All routes but probes. 500 is a fault of ours; 429 and 503 are refusals; 504 is a deadline that passed.",
                "reqps",
                {
                    "{{status}}": rate("flexi_http_responses_total", "status"),
                    "{{reason}}": rate("flexi_rejected_total", "reason"),
                },
            ),
        ],
    ),
    PanelRow(
        "Work",
        [
            Panel(
                "MACs per second by tier and kind",
                "UNet multiply-accumulates as waves run them, guidance rows and abandoned images included.",
                "none",
                {"{{tier}} {{kind}}": rate("flexi_macs_total", "tier", "kind")},
                stacked=True,
            ),
            Panel(
                "MACs saved against the teacher",
                "Share of the teacher's MACs that finished images did not need: 1 − flexi_image_macs_sum ÷ "
                "flexi_teacher_macs_total. The latter: each image's own MACs divided by its schedule's relative cost.",
                "percentunit",
                {
                    "{{tier}}": f"1 - {rate('flexi_image_macs_sum', 'tier')} / {rate('flexi_teacher_macs_total', 'tier')}",
                    "all": f"1 - {rate('flexi_image_macs_sum')} / {rate('flexi_teacher_macs_total')}",
                },
            ),
            Panel(
                "MACs spent on abandoned images",
                "Share of the MACs run that no finished image accounts for: clients that left, deadlines, failures; and, for a "
                "moment, images in flight.",
                "percentunit",
                {"abandoned": f"clamp_min(1 - {rate('flexi_image_macs_sum')} / {rate('flexi_macs_total')}, 0)"},
            ),
        ],
    ),
    PanelRow(
        "Engine",
        [
            Panel(
                "Rows per wave by kind",
                "How much company a UNet call has; an image with guidance takes two rows.",
                "none",
                {
                    "{{kind}} mean": f"{rate('flexi_wave_rows_sum', 'kind')} / {rate('flexi_wave_rows_count', 'kind')}",
                    **quantiles("flexi_wave_rows", "kind"),
                },
            ),
            Panel(
                "Waves per second by kind",
                "UNet calls.",
                "ops",
                {"{{kind}}": rate("flexi_wave_rows_count", "kind")},
                stacked=True,
            ),
            Panel("Duration of a wave by kind", "One UNet call.", "s", quantiles("flexi_wave_seconds", "kind")),
            Panel(
                "Images waiting and in flight",
                "Sums over all workers.",
                "none",
                {
                    "waiting {{instance}}": "sum by (instance) (flexi_queue_images{FILTER})",
                    "in flight {{instance}}": "sum by (instance) (flexi_inflight_images{FILTER})",
                },
            ),
            Panel(
                "Time in the queue",
                "Predicted: accepted work × measured pace, of the fullest worker. Measured: 95 % of the images waited less.",
                "s",
                {
                    "predicted {{instance}}": "max by (instance) (flexi_queue_seconds{FILTER})",
                    "measured p95": "histogram_quantile(0.95, "
                    + rate("flexi_stage_seconds_bucket", "le", condition=', stage="queue"')
                    + ")",
                },
            ),
            Panel(
                "Mean time in a stage",
                "queue and denoise per image; encode, decode and file per batch.",
                "s",
                {"{{stage}}": f"{rate('flexi_stage_seconds_sum', 'stage')} / {rate('flexi_stage_seconds_count', 'stage')}"},
            ),
        ],
    ),
    PanelRow(
        "Models and jobs",
        [
            Panel(
                "Models in memory",
                "Bytes of weights and slots, summed over workers; 0 while a model is away. It is loaded for a request.",
                "bytes",
                {"{{model}}": "sum by (model) (flexi_model_loaded{FILTER} * flexi_model_bytes{FILTER})"},
                stacked=True,
            ),
            Panel(
                "Loads of models an hour",
                "Many, with several models: FLEXI_MODELS_MIB holds too few of those that are asked for.",
                "none",
                {"{{model}}": f"3600 * {rate('flexi_model_loads_total', 'model')}"},
            ),
            Panel(
                "Open jobs by state",
                "As the servers know them; all of one registry know the same.",
                "none",
                {"{{state}}": "max by (state) (flexi_jobs{FILTER})"},
                stacked=True,
            ),
            Panel(
                "Time of a job",
                "From its request to its end, by how it ended; and since when the oldest one waits.",
                "s",
                {
                    "oldest waits": "max(flexi_oldest_job_seconds{FILTER})",
                    **quantiles("flexi_job_seconds", "state"),
                },
            ),
            Panel(
                "Background work",
                "Predicted time for it if nothing else came, of the fullest worker. Clients' images go first.",
                "s",
                {"{{instance}}": "max by (instance) (flexi_background_seconds{FILTER})"},
            ),
            Panel(
                "Webhooks and files a minute",
                "Webhooks called and given up, files kept for a URL or not, and objects removed whose time was over.",
                "none",
                {
                    "webhooks {{outcome}}": f"60 * {rate('flexi_webhooks_total', 'outcome')}",
                    "files {{outcome}}": f"60 * {rate('flexi_files_total', 'outcome')}",
                    "removed": f"60 * {rate('flexi_swept_objects_total')}",
                },
            ),
        ],
    ),
    PanelRow(
        "Schedules",
        [
            Panel(
                "In force",
                "What each tier means now. Several lines of a tier: a promotion is on its way, or an experiment runs.",
                "none",
                {"": "max by (tier, arm, version, digest) (flexi_schedule_info{FILTER})"},
                kind="table",
            ),
            Panel(
                "Relative cost by tier",
                "MACs of the schedule in force, relative to the teacher's.",
                "percentunit",
                {"{{tier}}": "max by (tier) (flexi_relative_cost{FILTER})"},
            ),
            Panel(
                "Tiers of the registry, served and refused",
                "None served: the unaccelerated teacher serves everybody. GET /v1/tiers says why a tier is not served.",
                "none",
                {
                    "served {{instance}}": "min by (instance) (flexi_tiers_served{FILTER})",
                    "refused {{instance}}": "max by (instance) (flexi_tiers_unserved{FILTER})",
                },
            ),
            Panel(
                "Age of what was read from the registry",
                "Promotions and rollbacks reach a server only while this stays near the pause; failed looks beside it.",
                "s",
                {
                    "{{instance}}": "max by (instance) (time() - flexi_registry_last_success_timestamp_seconds{FILTER})",
                    "pause {{instance}}": "max by (instance) (flexi_watch_seconds{FILTER})",
                    "failed looks a minute": f"60 * {rate('flexi_registry_errors_total')}",
                },
            ),
            Panel(
                "Drift: steps and MACs, done against planned",
                "Of finished images, against their schedules' documents. Must be 0.",
                "none",
                {
                    "steps {{tier}} {{kind}}": "sum by (tier, kind) (flexi_finished_steps_total{FILTER}) "
                    "- sum by (tier, kind) (flexi_planned_steps_total{FILTER})",
                    "MACs {{tier}}": "sum by (tier) (flexi_image_macs_sum{FILTER}) "
                    "- sum by (tier) (flexi_planned_macs_total{FILTER})",
                },
            ),
        ],
    ),
    PanelRow(
        "Arms",
        [
            Panel(
                "Latency by tier and arm",
                "95 % of the answered requests took less. `none` is outside experiments.",
                "s",
                {
                    "{{tier}} {{arm}}": "histogram_quantile(0.95, "
                    + rate("flexi_request_seconds_bucket", "tier", "arm", "le", condition=', outcome="ok"')
                    + ")"
                },
            ),
            Panel(
                "Images by tier, arm and outcome",
                "Also by how they failed.",
                "ops",
                {"{{tier}} {{arm}} {{outcome}}": rate("flexi_images_total", "tier", "arm", "outcome")},
                stacked=True,
            ),
            Panel(
                "MACs per second by tier and arm",
                "As waves run them.",
                "none",
                {"{{tier}} {{arm}}": rate("flexi_macs_total", "tier", "arm")},
            ),
            Panel(
                "Experiments: units' requests by arm",
                "Of those that split traffic. Arms of equal weights run side by side; a line that ends was stopped.",
                "reqps",
                {"{{experiment}} {{arm}}": rate("flexi_assignment_total", "experiment", "arm")},
            ),
            Panel(
                "Rolled back by guardrails",
                "Since the servers' start: for which arm, by which metric. The experiment's history has the evidence.",
                "none",
                {"": "sum by (experiment, arm, metric) (flexi_rollbacks_total{FILTER})"},
                kind="table",
            ),
            Panel(
                "Guardrails' checks",
                "Since the servers' start. A guardrail without checks sees too few requests in its window, and guards nothing.",
                "none",
                {"": "sum by (experiment, arm, metric) (flexi_guard_checks_total{FILTER})"},
                kind="table",
            ),
            Panel(
                "Events of experiments",
                "Kept on their way to the registry, and lost: by a full disk, or in the memory of a process that was killed.",
                "ops",
                {"kept": rate("flexi_events_total"), "lost": rate("flexi_events_lost_total")},
            ),
        ],
    ),
    PanelRow(
        "Fidelity to the teacher",
        [
            Panel(
                "PSNR by tier and arm",
                "Of images sampled (FLEXI_SHADOW_SHARE), against the teacher's of the same noise: mean, and what 90 % exceed.",
                "dB",
                {
                    "{{tier}} {{arm}} mean": f"{rate('flexi_fidelity_psnr_sum', 'tier', 'arm')} "
                    f"/ {rate('flexi_fidelity_psnr_count', 'tier', 'arm')}",
                    "{{tier}} {{arm}} p10": "histogram_quantile(0.1, "
                    + rate("flexi_fidelity_psnr_bucket", "tier", "arm", "le")
                    + ")",
                },
            ),
            Panel(
                "rFID by tier and arm",
                "Fréchet distance of the newest 512 to the teacher's, from 64 on; comparable for one extractor only.",
                "none",
                {"{{tier}} {{arm}}": "avg by (tier, arm) (flexi_rfid{FILTER})"},
            ),
            Panel(
                "Sampled images",
                "What became of the samples: compared, or dropped because clients came first or the budget was spent.",
                "ops",
                {"{{outcome}}": rate("flexi_shadow_images_total", "outcome")},
            ),
            Panel(
                "PSNR of candidates",
                "Mean, against the teacher's, of the same images by what a tier means (active) and by its candidate.",
                "dB",
                {
                    "{{tier}} {{schedule}}": f"{rate('flexi_candidate_psnr_sum', 'tier', 'schedule')} "
                    f"/ {rate('flexi_candidate_psnr_count', 'tier', 'schedule')}"
                },
            ),
            Panel(
                "Seconds of an image by candidates",
                "Mean time of the waves of these images, each alone in idle time, by either schedule.",
                "s",
                {
                    "{{tier}} {{schedule}}": f"{rate('flexi_candidate_wave_seconds_total', 'tier', 'schedule')} "
                    f"/ {rate('flexi_candidate_psnr_count', 'tier', 'schedule')}"
                },
            ),
        ],
    ),
]
EXPERIMENTS = ("Arms", "Fidelity to the teacher")  # rows that say little without one
