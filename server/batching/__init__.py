"""Continuous batching of denoising steps: iteration-level scheduling, as Orca and vLLM do it for tokens."""
