"""The rules for the Prometheus operator: `python -m deploy.kubernetes.rules` makes them from deploy/prometheus/rules."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from registry.commands.command_line import run_program

RULES = Path(__file__).parent.parent / "prometheus" / "rules"
FILE = Path(__file__).parent / "components" / "monitoring" / "prometheusrule.yaml"
HEAD = "# Made by python -m deploy.kubernetes.rules from deploy/prometheus/rules: change them there.\n"


def prometheus_rule() -> dict[str, Any]:
    """The PrometheusRule: the groups of all files, in the order of the files' names."""
    groups = [group for file in sorted(RULES.glob("*.yml")) for group in yaml.safe_load(file.read_text())["groups"]]
    return {
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "PrometheusRule",
        "metadata": {"name": "flexiffusion"},
        "spec": {"groups": groups},
    }


def main() -> None:
    """Write the file anew."""
    FILE.write_text(HEAD + yaml.safe_dump(prometheus_rule(), sort_keys=False, allow_unicode=True, width=1000))


if __name__ == "__main__":
    run_program(main)
