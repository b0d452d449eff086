"""Each worker has a place, and where there are several GPUs, one of its own; with processes, as BentoML starts them."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path

import pytest
from places import ROOT

from registry.errors import FlexiError
from server import worker_place
from server.worker_place import FIRST_PAUSE, LONGEST_PAUSE, WELL_SECONDS, PlaceRecord, WorkerPlace, lay_out, take

# BentoML's supervisor in small: each line that it reads starts a worker, or kills one by its number.
SUPERVISOR = """
import subprocess, sys
import click
WORKER = '''
import os, sys
from server.preconditions import place
torch = "torch" in sys.modules
print(place.number, os.environ.get("CUDA_VISIBLE_DEVICES"), torch, flush=True)
sys.stdin.read()
'''

@click.command()
@click.option("--host")
@click.option("--port")
def serve(host, port):
    from server import preconditions
    assert "torch" not in sys.modules
    workers = []
    for line in sys.stdin:
        if line == "start\\n":
            worker = subprocess.Popen([sys.executable, "-c", WORKER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            workers.append(worker)
            print(worker.stdout.readline(), end="", flush=True)
        else:
            workers[int(line)].kill()
            workers[int(line)].wait()
    for worker in workers:
        worker.kill()
        worker.wait()

serve()
"""


def supervised(tmp_path: Path, said: list[str], **settings: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name != "CUDA_VISIBLE_DEVICES"}
    environment |= {"TMPDIR": str(tmp_path), "FLEXI_DEVICE": "cuda", "FLEXI_MODEL": str(ROOT / "models" / "emoji64")}
    command = [sys.executable, "-c", SUPERVISOR, "--host", "127.0.0.1", "--port", "0"]
    return subprocess.run(
        command,
        input="".join(f"{line}\n" for line in said),
        cwd=ROOT,
        env=environment | settings,
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_each_worker_sees_one_gpu_before_torch_is_there_and_a_successor_gets_the_free_one(tmp_path):
    said = ["start", "start", "0", "start", "1", "start"]
    done = supervised(tmp_path, said, FLEXI_WORKERS="2", CUDA_VISIBLE_DEVICES="GPU-31c2, MIG-77aa")
    assert (done.returncode, done.stderr) == (0, "")
    first, second = "1 GPU-31c2 False", "2 MIG-77aa False"
    assert done.stdout.splitlines() == [first, second, first, second]
    assert list(tmp_path.iterdir()) == [], "the supervisor's folder is gone with it"


def test_more_workers_than_gpus_end_the_start_with_a_line_that_names_setting_and_numbers(tmp_path):
    done = supervised(tmp_path, ["start"], FLEXI_WORKERS="3", CUDA_VISIBLE_DEVICES="0,1")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("error: FLEXI_WORKERS: with FLEXI_DEVICE=cuda each worker gets a GPU of its own")
    assert "sees 2 GPUs" in done.stderr
    assert done.stderr.endswith("got 3\n")


def nobody_serves() -> bool:
    return False


def taken(folder: Path) -> WorkerPlace:
    return take(folder, nobody_serves, patience=0.1)


def test_no_two_workers_have_a_place_in_common_and_nobody_gets_one_that_is_not_there(tmp_path):
    lay_out(tmp_path, 2, ["0", "1", "2"])
    held = [taken(tmp_path) for _ in range(3)]
    assert [place.record.gpu for place in held] == ["0", "1", "2"]
    with pytest.raises(FlexiError, match="all places are taken"):
        taken(tmp_path)
    held[1].close()
    assert taken(tmp_path).number == 2


def test_a_successor_takes_the_spare_gpu_and_not_the_one_that_its_predecessor_lost(tmp_path):
    lay_out(tmp_path, 2, ["0", "1", "2"])
    first, _ = taken(tmp_path), taken(tmp_path)
    first.opened()
    first.close()
    successor = taken(tmp_path)
    assert successor.record.gpu == "2"
    successor.close()
    assert taken(tmp_path).record.gpu == "0", "of two that were tried once, the one that was tried longer ago"


def test_pauses_between_tries_grow_to_a_bound_and_are_few_in_ten_minutes():
    pauses = [PlaceRecord(tries=tries, taken=100.0).next_try() - 100.0 for tries in range(1, 8)]
    assert PlaceRecord().next_try() == 0.0
    assert pauses[0] == FIRST_PAUSE
    assert pauses[-1] == LONGEST_PAUSE == PlaceRecord(tries=100_000).next_try(), "a GPU may be away for years"
    assert all(before <= after for before, after in pairwise(pauses))
    assert sum(pauses[:5]) > 600.0, "two workers that end the server by six losses are not ended by one GPU"


def test_a_place_is_tried_again_at_once_where_nobody_serves_and_later_where_others_do(tmp_path, monkeypatch):
    slept = []
    monkeypatch.setattr(worker_place.time, "sleep", slept.append)
    lay_out(tmp_path, 1, ["0"])
    for tries in range(1, 5):
        place = taken(tmp_path)
        assert place.record.tries == tries
        place.close()
    assert slept == []
    serving = iter([True, True, True, False])
    place = take(tmp_path, lambda: next(serving))
    assert len(slept) == 3, "until the last of the others is gone"
    assert place.record.tries == 5


def test_a_worker_that_did_well_for_long_leaves_a_place_as_good_as_new(tmp_path, monkeypatch):
    lay_out(tmp_path, 1, [])
    place = taken(tmp_path)
    place.opened()
    place.close()
    now = time.time()
    monkeypatch.setattr(worker_place.time, "time", lambda: now + WELL_SECONDS + 1)
    successor = taken(tmp_path)
    assert (successor.record.tries, successor.record.opened) == (1, 0.0)
