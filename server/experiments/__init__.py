"""Experiments on live traffic: who sees which schedule, what came of it, and what follows."""
