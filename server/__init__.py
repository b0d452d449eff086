"""The BentoML service: schedules by tier, rows batched step by step, latency and MACs exported."""

VERSION = "0.1.0"
