"""A graph of the dashboard, and the queries that most of them ask."""

from __future__ import annotations

import json
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Panel:
    """A graph. `queries` are {legend: PromQL}; FILTER stands for the chosen servers and models, WINDOW for Grafana's choice."""

    title: str
    about: str
    unit: str
    queries: dict[str, str]
    stacked: bool = False
    kind: str = "timeseries"

    def asked(self, window: str = "5m", instance: str = ".*", model: str = ".*") -> dict[str, str]:
        """The queries as Prometheus takes them, of the servers and models that match regular expressions.

        What is of no model (HTTP, jobs, the registry) matches only where all models are chosen.
        """
        quoted = {"instance": json.dumps(instance, ensure_ascii=False), "model": json.dumps(model, ensure_ascii=False)}
        chosen = ", ".join(f"{label}=~{value}" for label, value in quoted.items())  # as PromQL quotes: a backslash is two
        return {legend: expr.replace("WINDOW", window).replace("FILTER", chosen) for legend, expr in self.queries.items()}


@dataclass(frozen=True)
class PanelRow:
    """A line of panels below a title."""

    title: str
    panels: list[Panel] = field(default_factory=list)


def quantiles(metric: str, by: str, condition: str = "") -> dict[str, str]:
    """p50, p95 and p99 of a histogram."""
    rate = f"rate({metric}_bucket{{FILTER{condition}}}[WINDOW])"
    legend = f"{{{{{by}}}}}"
    return {f"{legend} p{q}": f"histogram_quantile({q / 100}, sum by ({by}, le) ({rate}))" for q in (50, 95, 99)}


def rate(metric: str, *by: str, condition: str = "") -> str:
    """Per second, summed over everything but `by`."""
    return f"sum by ({', '.join(by)}) (rate({metric}{{FILTER{condition}}}[WINDOW]))"
