"""A generate request from its plan to its answer."""
