"""Strips of images of the same noise: the teacher's, ours, the best rival's."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from benchmarks.paper.contenders import CORRECTED, OURS
from benchmarks.paper.differences import PSNR, RFID
from search_jobs.report.style import HALO, INK, figure

IMAGES = 2  # of the same noise, in a strip
FRAME = "#d5dae0"


def strip(summary: Mapping[str, Any], shown: Path) -> Figure:
    """A column for each speed-up; for each image three rows: the teacher, ours, the best rival there by rFID."""
    with np.load(shown, allow_pickle=False) as kept:
        images = {name: kept[name] for name in kept.files}
    speedups = sorted({entry["speedup"] for entry in summary["entries"]})
    rows = 3 * min(IMAGES, len(images[summary["teacher"]["digest"]]))
    picture = figure(1.05 * max(1, len(speedups)) + 1.1, 1.05 * rows + 0.4)
    grid = picture.subplots(rows, max(1, len(speedups)), squeeze=False, gridspec_kw={"wspace": 0.03, "hspace": 0.03})
    for column, speedup in enumerate(speedups):
        here = [entry for entry in summary["entries"] if entry["speedup"] == speedup and entry["middle"] and entry["figures"]]
        ours = next((entry for entry in here if entry["kind"] == OURS), None)
        rivals = (entry for entry in here if entry["kind"] not in (CORRECTED, OURS))
        rival = min(rivals, key=lambda entry: float(entry["figures"][RFID]["value"]), default=None)
        for row in range(rows):
            cell, entry = grid[row][column], (None, ours, rival)[row % 3]
            digest = summary["teacher"]["digest"] if row % 3 == 0 else entry["digest"] if entry else None
            cell.set(xticks=[], yticks=[])
            cell.spines[:].set(color=FRAME, lw=0.5)  # images may be as white as the page
            if digest in images:
                cell.imshow(images[digest][row // 3], interpolation="nearest")
            if entry and row < 3:
                said, place = f"{entry['figures'][PSNR]['value']:.1f} dB", {"x": 0.04, "y": 0.05, "transform": cell.transAxes}
                cell.text(**place, s=said, fontsize=6.5, color=INK, path_effects=HALO)
        grid[0][column].set_title(f"{speedup:g}×", fontsize=9, color=INK)
    for row in range(rows):
        grid[row][0].set_ylabel(
            ("teacher", "ours", "best rival")[row % 3], rotation=0, ha="right", va="center", fontsize=8.5, color=INK
        )
    return picture
