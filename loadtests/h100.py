"""One H100, measured: what calls cost there by how they are driven.

NVIDIA H100 80GB, float16, every size of Stable Diffusion v1.5 (64×64 latents) with random weights; torch 2.11 + CUDA 13,
diffusers 0.42.1, Python 3.12, 16 CPU cores; 28 November 2026, this project at 5a16b7b. Medians or means of 10 to 20 calls.
Rows are UNet rows: a guided image is two.

Of partial steps s = 1 and 3 were measured by rows. Of s = 2 and 4 only the shares of the full step's time at few and at many
rows are known; `SHARES` makes curves of them.
"""

from __future__ import annotations

from collections.abc import Mapping

from loadtests.card import FULL, CallCost, Card

WHERE = "one H100 80GB, float16, SD v1.5's sizes, torch 2.11 + CUDA 13, diffusers 0.42.1, 2026-11-28"
SHARES = {2: (0.17, 0.30), 4: (0.35, 0.57)}  # of the full step, by the clock: of one row, of sixteen
DECODING = CallCost({1: 22.0, 8: 122.0}, host=16.0)  # queued kernel by kernel: the only way in which it was measured


def shared(full: CallCost) -> Mapping[int, CallCost]:
    """The branches of `SHARES`."""
    return {
        branch: CallCost({1: few * full.device[1], 16: many * full.device[16]}, few * full.host)
        for branch, (few, many) in SHARES.items()
    }


# Up to 4 rows an eager call takes as long as Python needs to queue it. How long the device alone would then need is what the
# same call takes as a graph.
_EAGER = CallCost({1: 9.6, 2: 12.3, 4: 17.3, 8: 30.2, 16: 52.6, 32: 100.2}, host=24.0)
_CAPTURED = CallCost({1: 9.6, 2: 12.3, 4: 17.3, 8: 28.4, 16: 51.9})

EAGER = Card(
    "our engine queues each kernel from Python, which takes the host 24 ms a full step",
    {
        FULL: _EAGER,
        1: CallCost({1: 0.65, 2: 0.97, 4: 1.57, 8: 3.05, 16: 5.80, 32: 11.2}, host=1.7),
        3: CallCost({1: 2.7, 2: 4.1, 4: 7.9, 8: 13.6, 16: 26.3, 32: 51.2}, host=6.8),
        **shared(_EAGER),
    },
    DECODING,
)
CAPTURED = Card(
    "our engine replays CUDA graphs of the same kernels (a prototype), which takes the host nothing",
    {
        FULL: _CAPTURED,
        1: CallCost({1: 0.65, 2: 0.97, 4: 1.57, 8: 2.91, 16: 5.60}),
        3: CallCost({1: 2.7, 2: 4.1, 4: 7.0, 8: 13.2, 16: 25.7}),
        **shared(_CAPTURED),
    },
    DECODING,
)
# torch.compile(mode="reduce-overhead", fullgraph=True), channels-last. One row was not measured: half of two, in its favour.
COMPILED = Card(
    "diffusers' pipeline runs compiled (reduce-overhead, channels-last), two rows in 6.6 ms",
    {FULL: CallCost({1: 3.32, 2: 6.64}, host=2.8)},
    DECODING,
)
CARDS = {"eager": EAGER, "captured": CAPTURED}
