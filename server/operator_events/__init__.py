"""What operators' webhook is told: that a tier was moved, an experiment rolled back, or that what is served may be old."""
