"""A UNet that computes nothing, so that what is left of a wave's time is the time around its UNet call."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from typing_extensions import override

from benchmarks.engine.workload import Workload
from engine.unrolled import UnrolledUNet


class NoopUNet(UnrolledUNet):
    """Outputs and features of the right shapes, made beforehand, of up to `rows` UNet rows and branch 1.

    Its attributes are a real one's, because looking them up is a wave's work too.
    """

    def __init__(self, workload: Workload, rows: int) -> None:
        vars(self).update(vars(workload.network))
        self.output, self.feature = workload.noise(rows), torch.randn(rows, *workload.macs.features[1])

    @override
    def full(self, sample: Tensor, *_: Any, **__: Any) -> tuple[Tensor, dict[int, Tensor]]:
        return self.output[: len(sample)], {1: self.feature[: len(sample)]}

    @override
    def partial(self, sample: Tensor, *_: Any, **__: Any) -> Tensor:
        return self.output[: len(sample)]
