"""Captured calls without a device that can capture any: each replay must be the captured call again, op for op."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten
from typing_extensions import override

from engine.graphs import Graph, Graphs

WAITS = {"aten::_local_scalar_dense", "aten::nonzero", "aten::masked_select"}
CHOOSE = {"aten::where"}  # by a mask, but between two values of one shape


class Ops(TorchDispatchMode):
    """Lists each op with the shapes, strides and types of its tensors, and where the memory is that lies at a `fixed` place."""

    def __init__(self, fixed: set[int]) -> None:
        super().__init__()
        self.fixed, self.calls = fixed, list[Any]()

    @override
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        flat, _ = tree_flatten((args, kwargs or {}))
        assert func._schema.name not in WAITS, f"{func} waits for the device, which a capture cannot"
        masks = func._schema.name not in CHOOSE and any(isinstance(x, Tensor) and x.dtype == torch.bool for x in flat)
        assert not masks, f"{func} may take a mask for an index"
        self.calls.append((str(func), [self._shape(x) if isinstance(x, Tensor) else x for x in flat]))
        return func(*args, **(kwargs or {}))

    def _shape(self, tensor: Tensor) -> Any:
        place = tensor.untyped_storage().data_ptr()
        return tuple(tensor.shape), tensor.stride(), tensor.dtype, place if place in self.fixed else None


class Capture(Graph):
    """A call, and what it asked for when it was captured."""

    def __init__(self, call: Callable[[], None], fixed: set[int]) -> None:
        self._call, self._fixed = call, fixed
        self._ops = self._run()
        self.replays = 0

    @override
    def replay(self) -> None:
        assert self._run() == self._ops, "another call than was captured"
        self.replays += 1

    def _run(self) -> list[Any]:
        with Ops(self._fixed) as ops:
            self._call()
        return ops.calls


class FakeGraphs(Graphs):
    """`fixed`: memory that every replay must find where the capture found it. `captures`, in the order of capture."""

    def __init__(self, fixed: Callable[[], list[Tensor]] = list) -> None:
        self.fixed = fixed
        self.captures = list[Capture]()
        self.error: Exception | None = None  # of each capture

    @property
    @override
    def bytes(self) -> int:
        return len(self.captures)

    @override
    def capture(self, call: Callable[[], None]) -> Capture:
        if self.error:
            raise self.error
        fixed = {tensor.untyped_storage().data_ptr() for tensor in self.fixed()}
        self.captures.append(Capture(call, fixed))
        return self.captures[-1]

    @property
    def replays(self) -> int:
        """Of all captures."""
        return sum(capture.replays for capture in self.captures)
