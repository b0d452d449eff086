"""Forecasts of what partial steps reuse, from several full steps: the peers' methods, and what they are worth."""
