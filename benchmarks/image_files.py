"""python -m benchmarks.image_files: what image files of 512×512 take, relative to Pillow's PNG in the same run.

Times are of the processor, in this thread, so that others on the machine count for little.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from statistics import median
from time import thread_time

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from rich.console import Console
from rich.table import Table

from server.requests.image_file import ImageFormat

SIDE, TURNS = 512, 15
SAMPLES = "models/emoji64/samples.png"
PARAMETERS = {"prompt": "red heart", "seed": "7", "schedule": "f" * 64}
FORMATS = [ImageFormat(), ImageFormat("jpeg"), ImageFormat("jpeg", 80), ImageFormat("webp"), ImageFormat("webp", 80)]


def images() -> dict[str, NDArray[np.uint8]]:
    """Waves of colour, the same with noise as of a model's last step, and the bundled model's images in their own size."""
    y, x = np.mgrid[0:SIDE, 0:SIDE] / SIDE
    waves = (np.sin(6 * x + 3 * y + np.sin(9 * y)), np.cos(5 * y - 6 * x * x), np.sin(8 * x * y))
    smooth = 127.5 + 100 * np.stack(waves, axis=-1)
    noise = 2 * np.random.default_rng(0).standard_normal(smooth.shape)
    sheet = Image.open(SAMPLES).convert("RGB").crop((0, 0, SIDE, SIDE))
    return {
        "smooth": smooth.round().astype(np.uint8),
        "with noise of 2 levels": (smooth + noise).round().astype(np.uint8),
        "emoji64's samples": np.asarray(sheet),
    }


def pillow_png(levels: NDArray[np.uint8]) -> bytes:
    """The yardstick: Pillow as it is."""
    file = io.BytesIO()
    Image.fromarray(levels).save(file, "PNG")
    return file.getvalue()


def seconds(call: Callable[[], object]) -> float:
    """Of a core, for one call."""
    start = thread_time()
    call()
    return thread_time() - start


def main() -> None:
    """Print a table of ratios to Pillow's PNG; times are medians of neighbouring turns."""
    table = Table("image", "file", "time", "size")
    for name, levels in images().items():
        base = len(pillow_png(levels))
        for form in FORMATS:
            file = form.file(levels, PARAMETERS)
            turns = [
                seconds(lambda levels=levels, form=form: form.file(levels, PARAMETERS))  # type: ignore[misc]
                / seconds(lambda levels=levels: pillow_png(levels))  # type: ignore[misc]
                for _ in range(TURNS)
            ]
            table.add_row(name, f"{form.name}, {form.quality} %", f"{median(turns):.3f}", f"{len(file) / base:.2f}")
    Console().print(table)


if __name__ == "__main__":
    main()
