"""Which GPUs there are, without CUDA: as the operator names them, or as NVML does."""

from __future__ import annotations

import pynvml
import pytest

from registry.errors import InvalidInput
from server import gpus

UUIDS = ["GPU-8f5d", "GPU-31c2"]


@pytest.mark.parametrize(
    ("named", "seen"),
    [
        ("2,0", ["2", "0"]),
        (" GPU-31c2 , MIG-77aa ", ["GPU-31c2", "MIG-77aa"]),
        ("1,-1,0", ["1"]),
        ("", []),
        ("NoDevFiles", ["NoDevFiles"]),
    ],
    ids=["indices in their order", "UUIDs", "cut at an index below zero, as by CUDA", "none", "what only CUDA understands"],
)
def test_what_the_operator_made_visible_is_what_workers_get(named, seen):
    assert gpus.visible_gpus({gpus.VISIBLE: named}, lambda: UUIDS) == seen


def test_without_a_word_of_the_operator_all_gpus_of_the_machine_are_there():
    assert gpus.visible_gpus({}, lambda: UUIDS) == UUIDS


def test_a_gpu_that_is_named_twice_is_refused():
    with pytest.raises(InvalidInput, match="CUDA_VISIBLE_DEVICES: names 0 twice"):
        gpus.visible_gpus({gpus.VISIBLE: "0,1,0"})


@pytest.mark.parametrize("there", [[], ["0"], ["0", "1", "2"]])
def test_more_workers_than_gpus_are_refused_with_both_numbers(there):
    with pytest.raises(InvalidInput, match=f"sees {len(there)} GPU") as refused:
        gpus.gpus_of_workers("cuda", 4, lambda: there)
    assert refused.value.param == "workers"
    assert refused.value.text.endswith("got 4")


def test_gpus_to_spare_are_kept_for_successors():
    assert gpus.gpus_of_workers("cuda", 2, lambda: ["0", "1", "2"]) == ["0", "1", "2"]


@pytest.mark.parametrize(("device", "workers"), [("cuda:3", 2), ("cuda", 1), ("cpu", 2)])
def test_where_workers_share_a_device_nothing_is_given_out_or_counted(device, workers):
    def fail() -> list[str]:
        raise AssertionError

    assert gpus.gpus_of_workers(device, workers, fail) == []


class FakeNvml:
    """What NVML says of three cards: a plain one, a lost one, and one in two parts, with room for a third."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.begun = 0
        monkeypatch.setattr(pynvml, "nvmlInit", lambda: self._count(1))
        monkeypatch.setattr(pynvml, "nvmlShutdown", lambda: self._count(-1))
        monkeypatch.setattr(pynvml, "nvmlDeviceGetCount", lambda: 3)
        monkeypatch.setattr(pynvml, "nvmlDeviceGetHandleByIndex", self._card)
        monkeypatch.setattr(pynvml, "nvmlDeviceGetUUID", lambda card: card if card.startswith("MIG") else f"GPU-{card}")
        monkeypatch.setattr(pynvml, "nvmlDeviceGetMigMode", self._mode)
        monkeypatch.setattr(pynvml, "nvmlDeviceGetMaxMigDeviceCount", lambda card: 3)
        monkeypatch.setattr(pynvml, "nvmlDeviceGetMigDeviceHandleByIndex", self._part)

    def _count(self, one: int) -> None:
        self.begun += one

    def _card(self, index: int) -> str:
        if index == 1:
            raise pynvml.NVMLError_GpuIsLost
        return "abc"[index]

    def _mode(self, card: str) -> tuple[int, int]:
        if card == "a":
            raise pynvml.NVMLError_NotSupported
        return (1, 1)

    def _part(self, card: str, part: int) -> str:
        if part == 1:
            raise pynvml.NVMLError_NotFound
        return f"MIG-{card}{part}"


def test_nvml_names_whole_gpus_and_the_parts_of_divided_ones_and_leaves_out_lost_ones(monkeypatch):
    nvml = FakeNvml(monkeypatch)
    assert gpus.machine_gpus() == ["GPU-a", "MIG-c0", "MIG-c2"]
    assert nvml.begun == 0


def test_a_machine_without_nvml_says_so_and_what_to_do(monkeypatch):
    def fail() -> None:
        raise pynvml.NVMLError_LibraryNotFound

    monkeypatch.setattr(pynvml, "nvmlInit", fail)
    with pytest.raises(InvalidInput, match=r"the GPUs cannot be counted: .+; name them in CUDA_VISIBLE_DEVICES") as refused:
        gpus.machine_gpus()
    assert refused.value.param == "workers"
