"""LoRAs that requests may name: the operator's files, which of them fit a model, and what a choice of them is."""
