"""The BentoML service: schedules by tier, continuous batching of denoising steps, latency and MACs exported."""

VERSION = "0.1.0"
