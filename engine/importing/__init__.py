"""Checkpoints of other layouts, and LoRAs, made into folders as diffusers saves them."""
