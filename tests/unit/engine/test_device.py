"""What is a lost device, and what only an error."""

from __future__ import annotations

import pytest
import torch

from engine.device import CudaFence, DeviceLost, fence, lane, lost


def accelerator_error(code: int | None) -> torch.AcceleratorError:
    error = torch.AcceleratorError("CUDA error")
    if code is not None:
        error.error_code = code
    return error


def caused_by(cause: Exception) -> RuntimeError:
    error = RuntimeError("of a library")
    error.__cause__ = cause
    return error


ILLEGAL_ADDRESS, ASSERT = 700, 710
INVALID_CONFIGURATION, NO_MEMORY, IN_A_CAPTURE = 9, 2, 900


@pytest.mark.parametrize(
    "error",
    [DeviceLost("gone"), *(accelerator_error(code) for code in (None, ILLEGAL_ADDRESS, ASSERT)), caused_by(DeviceLost("gone"))],
)
def test_an_accelerators_error_means_that_it_is_lost(error: Exception) -> None:
    assert lost(error)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("no memory"),
        *(accelerator_error(code) for code in (INVALID_CONFIGURATION, NO_MEMORY, IN_A_CAPTURE)),
        RuntimeError("shapes do not fit"),
        caused_by(ValueError("no number")),
    ],
)
def test_no_memory_and_what_only_this_call_could_not_do_is_no_lost_device(error: Exception) -> None:
    assert not lost(error)


@pytest.mark.parametrize("call", ["done", "wait"])
def test_an_error_at_a_fence_is_a_lost_device(call: str) -> None:
    """An event whose context is broken answers every question with an error."""

    class Event:
        def query(self) -> bool:
            raise RuntimeError("device-side assert")

        synchronize = query

    mark = CudaFence.__new__(CudaFence)
    mark._event = Event()  # type: ignore[assignment]
    with pytest.raises(DeviceLost, match="device-side assert"):
        getattr(mark, call)()


def test_a_lane_of_the_host_is_its_own_thread() -> None:
    cpu = torch.device("cpu")
    own = lane(cpu)
    begin = fence(cpu)
    with own.after(begin):
        torch.zeros(1)
    assert own.fence().done()
    assert own.fence().since(begin) >= 0
