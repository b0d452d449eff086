"""The Grafana dashboard: `python -m deploy.grafana.dashboard` writes flexiffusion.json beside this file.

What it shows is in `panels`, how that is laid out is here.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from deploy.grafana.panel import Panel
from deploy.grafana.panels import ROWS
from registry.commands.command_line import run_program

FILE = Path(__file__).with_name("flexiffusion.json")
SOURCE = {"type": "prometheus", "uid": "${source}"}
WIDTH, HEIGHT = 8, 8  # of a panel; Grafana's grid is 24 wide


def dashboard() -> dict[str, Any]:
    """The dashboard's document."""
    panels, y = list[dict[str, Any]](), 0
    for row in ROWS:
        panels.append({"type": "row", "title": row.title, "collapsed": False, "gridPos": _place(0, y, 24, 1), "panels": []})
        for i, panel in enumerate(row.panels):
            place = _place(WIDTH * (i % 3), y + 1 + HEIGHT * (i // 3), WIDTH, HEIGHT)
            panels.append(_panel(panel, place))
        y += 1 + HEIGHT * -(-len(row.panels) // 3)
    for number, document in enumerate(panels, start=1):
        document["id"] = number
    return {
        "uid": "flexiffusion",
        "title": "Flexiffusion Serve",
        "tags": ["flexiffusion"],
        "schemaVersion": 39,
        "editable": True,
        "refresh": "30s",
        "time": {"from": "now-1h", "to": "now"},
        "templating": {"list": [_SOURCES, *_CHOICES]},
        "panels": panels,
    }


_SOURCES = {"name": "source", "label": "Prometheus", "type": "datasource", "query": "prometheus"}
_CHOICES = [
    {
        "name": name,
        "label": label,
        "type": "query",
        "datasource": SOURCE,
        "query": {"query": f"label_values({metric}, {name})", "refId": name},
        "refresh": 2,
        "multi": True,
        "includeAll": True,
        "allValue": ".*",
        "current": {"text": ["All"], "value": ["$__all"]},
    }
    for name, label, metric in (("instance", "Server", "flexi_engine_up"), ("model", "Model", "flexi_model_loaded"))
]


def _place(x: int, y: int, w: int, h: int) -> dict[str, int]:
    return {"x": x, "y": y, "w": w, "h": h}


def _panel(panel: Panel, place: dict[str, int]) -> dict[str, Any]:
    table = panel.kind == "table"
    custom = {} if table else {"fillOpacity": 10, "stacking": {"mode": "normal" if panel.stacked else "none"}}
    return {
        "type": panel.kind,
        "title": panel.title,
        "description": panel.about,
        "datasource": SOURCE,
        "gridPos": place,
        "fieldConfig": {"defaults": {"unit": panel.unit, "custom": custom}, "overrides": []},
        "options": {} if table else {"legend": {"displayMode": "list", "placement": "bottom"}, "tooltip": {"mode": "multi"}},
        "targets": [
            {
                "refId": chr(ord("A") + i),
                "datasource": SOURCE,
                "expr": expr,
                "legendFormat": legend,
                "instant": table,
                "range": not table,
                "format": "table" if table else "time_series",
            }
            for i, (legend, expr) in enumerate(panel.asked("$__rate_interval", "$instance", "$model").items())
        ],
    }


def main() -> None:
    """Write the file anew."""
    FILE.write_text(json.dumps(dashboard(), indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    run_program(main)
