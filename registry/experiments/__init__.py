"""Experiments as the registry keeps them: declarations, and the state that operators and guardrails move."""
