"""Every metric of the server; nothing else defines one. Labels have bounded sets of values.

Worker processes share them through prometheus_client's multiprocess files: gauges say how values of several workers
combine. What of them is shown is in `exposition`.
"""

from __future__ import annotations

from prometheus_client import Counter, Gauge, Histogram

from server.telemetry.model_metrics import ModelCounter, ModelGauge, ModelHistogram

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
ROWS = (1, 2, 4, 8, 12, 16, 24, 32, 48, 64, 128)
DECIBELS = (10, 15, 20, 25, 30, 35, 40, 45, 50, 60, 80, 100)
DISTANCES = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50)
MACS = tuple(10.0**power * digit for power in range(8, 16) for digit in (1, 2, 5))
CUSTOM = "custom"  # tier label of requests that name a schedule
NO_ARM = "none"  # arm label outside experiments

request_seconds = ModelHistogram(
    "flexi_request_seconds", "Time from a valid request to its answer.", ["tier", "arm", "outcome"], buckets=SECONDS
)
stage_seconds = ModelHistogram(
    "flexi_stage_seconds",
    "Time in a stage: queue, denoise and vae_encode per image, encode, decode and file per batch, adapt per set of LoRAs.",
    ["stage"],
    buckets=SECONDS,
)  # fmt: skip
forecast_ratio = ModelHistogram(
    "flexi_forecast_ratio", "A request's time until its pixels over the predicted one.", ["tier"],
    buckets=(0.1, 0.25, 0.5, 0.75, 0.9, 1.0, 1.1, 1.25, 1.5, 2, 4, 10),
)  # fmt: skip
start_seconds = Gauge(
    "flexi_start_seconds", "How long the start took, by part, and until all was ready; the most of all workers.", ["part"],
    multiprocess_mode="livemax",
)  # fmt: skip
engine_up = Gauge(
    "flexi_engine_up", "1 while the engine's thread takes images; the least of all workers.", multiprocess_mode="livemin"
)
workers = Gauge("flexi_workers", "Worker processes, as set.", multiprocess_mode="livemax")
workers_up = Gauge(
    "flexi_workers_up", "Worker processes whose engine's thread takes images, of all that live.", multiprocess_mode="livesum"
)
engine_silent_seconds = Gauge(
    "flexi_engine_silent_seconds",
    "How long the device has answered nothing of what the engine's thread asked; the most of all workers.",
    multiprocess_mode="livemax",
)
queue_seconds = Gauge(
    "flexi_queue_seconds", "Predicted time for the work accepted and not done; the most of all workers.",
    multiprocess_mode="livemax",
)  # fmt: skip
background_seconds = Gauge(
    "flexi_background_seconds", "The same for background work, were there no other; the most of all workers.",
    multiprocess_mode="livemax",
)  # fmt: skip
queue_images = ModelGauge("flexi_queue_images", "Images that wait for the engine.", multiprocess_mode="livesum")
inflight_images = ModelGauge("flexi_inflight_images", "Images in the engine.", multiprocess_mode="livesum")
cache_bytes = ModelGauge(
    "flexi_cache_bytes", "Memory for UNet rows in flight: latents and cached features, allocated at the start.",
    multiprocess_mode="livesum",
)  # fmt: skip
model_loaded = ModelGauge("flexi_model_loaded", "1 while the model is in memory.", multiprocess_mode="livesum")
model_bytes = ModelGauge(
    "flexi_model_bytes", "Memory that the model's weights and slots take while it is loaded.", multiprocess_mode="livemax"
)
model_load_seconds = ModelGauge(
    "flexi_model_load_seconds", "What loading the model took the last time; the most of all workers.",
    multiprocess_mode="livemax",
)  # fmt: skip
model_loads_total = ModelCounter("flexi_model_loads_total", "Times that the model was loaded.")
decoder_upcast = ModelGauge(
    "flexi_decoder_upcast", "1 while the decoder runs in a wider type because it overflowed in the one that was set.",
    multiprocess_mode="livemax",
)  # fmt: skip
source_cache_bytes = ModelGauge(
    "flexi_source_cache_bytes", "Memory of the device for encoded images that edits started from.", multiprocess_mode="livesum"
)
source_latents_total = ModelCounter(
    "flexi_source_latents_total", "Encoded images that edits asked for, by whether they were kept: hit or miss.", ["cache"]
)
adapter_sets_total = ModelCounter(
    "flexi_adapter_sets_total", "Sets of LoRAs that requests asked for: kept in memory, made, or failed to be.", ["outcome"]
)
adapter_set_bytes = ModelGauge(
    "flexi_adapter_set_bytes", "Memory for weights that LoRAs changed, of all sets in memory.", multiprocess_mode="livesum"
)
cuda_graphs = ModelGauge(
    "flexi_cuda_graphs", "CUDA graphs: kinds and sizes of waves that are one launch.", multiprocess_mode="livesum"
)
cuda_graph_bytes = ModelGauge("flexi_cuda_graph_bytes", "Memory of CUDA graphs beside the slots.", multiprocess_mode="livesum")
waves_total = ModelCounter("flexi_waves_total", "Waves by how they were launched: as one CUDA graph, or eagerly.", ["launch"])
padding_macs_total = ModelCounter(
    "flexi_padding_macs_total", "UNet MACs of rows that only fill a wave up to its size, and are nobody's.", ["kind"]
)
compile_seconds = ModelGauge(
    "flexi_compile_seconds", "What compiling took at the start, or taking from the cache; the most of all workers.",
    multiprocess_mode="livemax",
)  # fmt: skip
compiled_graphs = ModelGauge(
    "flexi_compiled_graphs", "Graphs of the model, by whether the compile cache had their kernels at the start.", ["cache"],
    multiprocess_mode="livesum",
)  # fmt: skip
compile_cache_bytes = Gauge(
    "flexi_compile_cache_bytes", "Size of the compile cache's folder after the start.", multiprocess_mode="livemax"
)
wave_rows = ModelHistogram("flexi_wave_rows", "UNet rows of a wave.", ["kind"], buckets=ROWS)
wave_seconds = ModelHistogram("flexi_wave_seconds", "How long a wave took the device.", ["kind"], buckets=SECONDS)
steps_total = ModelCounter("flexi_steps_total", "Steps executed, and null steps jumped over.", ["kind", "tier"])
macs_total = ModelCounter("flexi_macs_total", "UNet MACs executed, guidance rows included.", ["tier", "arm", "kind"])
image_macs = ModelHistogram("flexi_image_macs", "UNet MACs executed for a finished image.", ["tier"], buckets=MACS)
planned_macs_total = ModelCounter(
    "flexi_planned_macs_total", "MACs of finished images by the cost in their schedules' documents, if there.", ["tier"]
)
teacher_macs_total = ModelCounter(
    "flexi_teacher_macs_total", "MACs that the teacher would have taken for the finished images.", ["tier", "arm"]
)
planned_steps_total = ModelCounter(
    "flexi_planned_steps_total", "Steps of finished images by their schedules.", ["kind", "tier"]
)
finished_steps_total = ModelCounter(
    "flexi_finished_steps_total", "Steps of finished images as executed or jumped over.", ["kind", "tier"]
)
images_total = ModelCounter("flexi_images_total", "Images by how they ended.", ["tier", "arm", "outcome"])
image_sizes_total = ModelCounter("flexi_image_sizes_total", "Finished images by their size, WIDTHxHEIGHT in pixels.", ["size"])
prompt_chunks_total = ModelCounter("flexi_prompt_chunks_total", "Finished images by the chunks of their context.", ["chunks"])
http_responses_total = Counter(
    "flexi_http_responses_total", "Answers by HTTP status, without those to probes and /metrics.", ["status"]
)
rejected_total = Counter("flexi_rejected_total", "Requests refused, by error code.", ["reason"])
warnings_total = ModelCounter(
    "flexi_warnings_total", "Warnings of planned requests: wishes that were not met, by code.", ["code"]
)
relative_cost = ModelGauge(
    "flexi_relative_cost", "A tier's MACs relative to the teacher's.", ["tier"], multiprocess_mode="livemostrecent"
)
schedule_info = ModelGauge(
    "flexi_schedule_info", "1 for what a tier means now.", ["tier", "arm", "digest", "version"],
    multiprocess_mode="livemax",
)  # fmt: skip
tier_stale = ModelGauge(
    "flexi_tier_stale", "1 while a tier does not mean what its alias says, because that was refused.", ["tier"],
    multiprocess_mode="livemax",
)  # fmt: skip
tiers_served = ModelGauge(
    "flexi_tiers_served",
    "Tiers of the registry that are served, but reference; the least of all workers.",
    multiprocess_mode="livemin",
)
tiers_unserved = ModelGauge(
    "flexi_tiers_unserved", "Tiers of the registry that are not served, because they were refused; the most of all workers.",
    multiprocess_mode="livemax",
)  # fmt: skip
default_tier_served = ModelGauge(
    "flexi_default_tier_served", "1 while the default tier is in force; the least of all workers.", multiprocess_mode="livemin"
)
registry_last_success_timestamp_seconds = ModelGauge(
    "flexi_registry_last_success_timestamp_seconds", "When the registry was last read, in Unix time.",
    multiprocess_mode="livemin",
)  # fmt: skip
watch_seconds = Gauge("flexi_watch_seconds", "Pause between two looks at the registry, as set.", multiprocess_mode="livemax")
registry_errors_total = ModelCounter("flexi_registry_errors_total", "Looks at the registry, or at one tier in it, that failed.")
assignment_total = ModelCounter("flexi_assignment_total", "Requests enrolled in an experiment.", ["experiment", "arm"])
experiment_running = ModelGauge(
    "flexi_experiment_running", "1 while an experiment splits traffic here.", ["experiment"], multiprocess_mode="livemostrecent"
)
rollbacks_total = ModelCounter(
    "flexi_rollbacks_total", "Experiments that this server's guardrails rolled back.", ["experiment", "arm", "metric"]
)
rollbacks_unreported = ModelGauge(
    "flexi_rollbacks_unreported",
    "Roll-backs that the registry has not taken yet: other servers do not know of them.",
    multiprocess_mode="livesum",
)
guard_checks_total = ModelCounter(
    "flexi_guard_checks_total", "Times that an arm was held against a guardrail here.", ["experiment", "arm", "metric"]
)
fidelity_psnr = ModelHistogram(
    "flexi_fidelity_psnr", "PSNR in dB of sampled images against the teacher's.", ["tier", "arm"], buckets=DECIBELS
)
fidelity_distance = ModelHistogram(
    "flexi_fidelity_distance", "Distance in feature space of sampled images to the teacher's.", ["tier", "arm"],
    buckets=DISTANCES,
)  # fmt: skip
rfid = ModelGauge(
    "flexi_rfid", "Fréchet distance of the newest sampled images to the teacher's of the same noise.", ["tier", "arm"],
    multiprocess_mode="livemostrecent",
)  # fmt: skip
shadow_images_total = ModelCounter(
    "flexi_shadow_images_total", "Sampled images made again by the teacher, by how it went.", ["outcome"]
)
repeats_total = ModelCounter(
    "flexi_repeats_total", "Lookups of images among those made before, by whether they were there: hit or miss.", ["cache"]
)
repeat_macs_total = ModelCounter(
    "flexi_repeat_macs_total", "MACs that repeats did not take: those of their images when they were made.", ["tier"]
)
repeat_bytes = Gauge("flexi_repeat_bytes", "Memory for images that are kept to be repeated.", multiprocess_mode="livesum")
candidate_info = ModelGauge(
    "flexi_candidate_info", "1 for the candidate that a tier's images are made again with.", ["tier", "digest", "version"],
    multiprocess_mode="livemax",
)  # fmt: skip
candidates_unserved = ModelGauge(
    "flexi_candidates_unserved",
    "Declared candidates that no image is made with here, because they were refused.",
    multiprocess_mode="livemax",
)  # fmt: skip
candidate_images_total = ModelCounter(
    "flexi_candidate_images_total", "Sampled images made again by a tier's candidate, by how it went.", ["tier", "outcome"]
)
candidate_macs_total = ModelCounter(
    "flexi_candidate_macs_total", "UNet MACs of the same images by what the tier means and by its candidate.",
    ["tier", "schedule"],
)  # fmt: skip
candidate_wave_seconds_total = ModelCounter(
    "flexi_candidate_wave_seconds_total", "Time of their waves, in which each was alone.", ["tier", "schedule"]
)
candidate_psnr = ModelHistogram(
    "flexi_candidate_psnr", "PSNR in dB of these images against the teacher's.", ["tier", "schedule"], buckets=DECIBELS
)
candidate_distance = ModelHistogram(
    "flexi_candidate_distance", "Distance in feature space of these images to the teacher's.", ["tier", "schedule"],
    buckets=DISTANCES,
)  # fmt: skip
candidate_rfid = ModelGauge(
    "flexi_candidate_rfid", "Fréchet distance of the newest of these images to the teacher's.", ["tier", "schedule"],
    multiprocess_mode="livemostrecent",
)  # fmt: skip
jobs = Gauge(
    "flexi_jobs", "Open jobs by their state, as a worker knows them; the most of all workers.", ["state"],
    multiprocess_mode="livemax",
)  # fmt: skip
oldest_job_seconds = Gauge(
    "flexi_oldest_job_seconds", "Since when the oldest job waits; 0 where none does.", multiprocess_mode="livemax"
)
job_seconds = Histogram(
    "flexi_job_seconds", "Time of a job from its request to its end, by how it ended.", ["state"],
    buckets=(1, 5, 15, 60, 300, 900, 3600, 14400, 43200, 86400),
)  # fmt: skip
webhooks_total = Counter("flexi_webhooks_total", "Webhooks that were called or given up, by how it went.", ["outcome"])
operator_events_total = Counter(
    "flexi_operator_events_total", "Events for operators' webhook, by how it went.", ["event", "outcome"]
)
files_total = Counter("flexi_files_total", "Files that were to be kept for a URL, by how it went.", ["outcome"])
marked_files_total = Counter(
    "flexi_marked_files_total", "Image files that were to be marked as generated, by how it went.", ["outcome"]
)
marking_certificate_expiry_timestamp_seconds = Gauge(
    "flexi_marking_certificate_expiry_timestamp_seconds",
    "When the certificate that images are marked with expires, in Unix time; 0 without one; the earliest of all workers.",
    multiprocess_mode="livemin",
)
swept_objects_total = Counter("flexi_swept_objects_total", "Objects of the store that had had their time, and were removed.")
events_total = Counter("flexi_events_total", "Events of experiments written to disk, on their way to the store.")
events_lost_total = Counter("flexi_events_lost_total", "Events that could not be kept, or that a killed process had in memory.")
operator_actions_total = ModelCounter(
    "flexi_operator_actions_total", "What operators did or were refused by its routes, by how it went.", ["action", "outcome"]
)
api_keys_errors_total = Counter("flexi_api_keys_errors_total", "Changed API key files that could not be used.")


def begin() -> None:
    """Show the present model's counts from their beginning: else the first event of a kind would be none to Prometheus."""
    for metric in (cuda_graphs, cuda_graph_bytes, registry_errors_total, rollbacks_unreported, queue_images, inflight_images):
        metric.labels()
    for by_outcome in (webhooks_total, files_total, marked_files_total):
        for outcome in ("ok", "failed"):
            by_outcome.labels(outcome)
