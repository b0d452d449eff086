"""Figures that the documents quote, measured or simulated by anybody who runs them again."""
