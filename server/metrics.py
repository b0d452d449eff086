"""Every metric of the server; nothing else defines one. Labels have bounded sets of values, but for the
digest and version of `schedule_info`, which grow by one with each promotion.

Worker processes share them through prometheus_client's multiprocess files: gauges say how values of several workers
combine, and a label set once used stays (`schedule_info` is 0 for what is not in force any more).
"""

from __future__ import annotations

from prometheus_client import Counter, Gauge, Histogram

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
ROWS = (1, 2, 4, 8, 12, 16, 24, 32, 48, 64, 128)
MACS = tuple(10.0**power * digit for power in range(8, 16) for digit in (1, 2, 5))
CUSTOM = "custom"  # tier label of requests that name a schedule
NO_ARM = "none"  # arm label outside experiments

request_seconds = Histogram(
    "flexi_request_seconds", "Time from a valid request to its answer.", ["tier", "arm", "outcome"], buckets=SECONDS
)
stage_seconds = Histogram(
    "flexi_stage_seconds", "Time in a stage: queue and denoise per image, encode, decode and png per batch.", ["stage"],
    buckets=SECONDS,
)  # fmt: skip
queue_rows = Gauge("flexi_queue_rows", "Images that wait for the engine.", multiprocess_mode="livesum")
inflight_rows = Gauge("flexi_inflight_rows", "Images in the engine.", multiprocess_mode="livesum")
cache_bytes = Gauge(
    "flexi_cache_bytes", "Memory for rows in flight: latents and cached features, allocated at the start.",
    multiprocess_mode="livesum",
)  # fmt: skip
wave_rows = Histogram("flexi_wave_rows", "UNet rows of a wave.", ["kind"], buckets=ROWS)
wave_seconds = Histogram("flexi_wave_seconds", "Duration of a wave.", ["kind"], buckets=SECONDS)
steps_total = Counter("flexi_steps_total", "Steps executed, and null steps jumped over.", ["kind", "tier"])
macs_total = Counter("flexi_macs_total", "UNet MACs executed, guidance rows included.", ["tier", "arm", "kind"])
image_macs = Histogram("flexi_image_macs", "UNet MACs executed for a finished image.", ["tier"], buckets=MACS)
images_total = Counter("flexi_images_total", "Images by how they ended.", ["tier", "arm", "outcome"])
rejected_total = Counter("flexi_rejected_total", "Requests refused, by error code.", ["reason"])
relative_cost = Gauge(
    "flexi_relative_cost", "A tier's MACs relative to the teacher's.", ["tier"], multiprocess_mode="livemostrecent"
)
schedule_info = Gauge(
    "flexi_schedule_info", "1 for what a tier means now.", ["tier", "arm", "digest", "version"],
    multiprocess_mode="livemax",
)  # fmt: skip
tier_stale = Gauge(
    "flexi_tier_stale", "1 while a tier does not mean what its alias says, because that was refused.", ["tier"],
    multiprocess_mode="livemax",
)  # fmt: skip
registry_last_success_timestamp_seconds = Gauge(
    "flexi_registry_last_success_timestamp_seconds", "When the registry was last read, in Unix time.",
    multiprocess_mode="livemin",
)  # fmt: skip
registry_errors_total = Counter("flexi_registry_errors_total", "Looks at the registry, or at one tier in it, that failed.")
