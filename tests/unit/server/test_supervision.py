"""A worker that cannot start ends the server, and the server's last line says why; with processes, as BentoML starts them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from places import ROOT

# BentoML's supervisor in small: a command of click, whose workers are its children, and which SIGTERM ends with code 0.
SUPERVISOR = """
import signal, subprocess, sys, time
import click
from server import supervision

@click.command()
@click.option("--host")
@click.argument("workers", nargs=-1)
def serve(host, workers):
    supervision.supervise()
    stopped = []
    signal.signal(signal.SIGTERM, lambda *_: stopped.append(True))
    for worker in workers:
        print("exit code", subprocess.run([sys.executable, "-c", "from server import supervision\\n" + worker]).returncode)
    print("stopped" if stopped else "went on")

serve()
"""
FAILS = "supervision.starting(); supervision.note('{}'); supervision.end()"
DIES = "supervision.starting(); import os, signal; os.kill(os.getpid(), signal.SIGKILL)"
OPENS = "supervision.starting(); supervision.started(1)"
LOSES = "supervision.starting(); supervision.started(1); supervision.lost('{}', workers=1) and supervision.end()"
OTHER_OPENS = "import os; (supervision.shared_folder() / f'open-{os.getppid()}').touch()"  # as if the supervisor were one
GIVES_UP = "supervision.starting(); supervision.given_up()"
REFUSES = "raise supervision.refused('no')"


def run(*workers: str, folder: Path, **settings: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", SUPERVISOR, "--host", "127.0.0.1", *workers]
    environment = os.environ | {"TMPDIR": str(folder)} | settings
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize("worker", [FAILS.format("no"), REFUSES], ids=["later", "at the import"])
def test_a_worker_that_fails_ends_the_server_with_its_reason(tmp_path, worker):
    done = run(worker, folder=tmp_path)
    assert (done.returncode, done.stderr) == (1, "error: no\n")
    assert done.stdout.endswith("stopped\n")
    assert list(tmp_path.iterdir()) == []


def test_the_first_of_several_reasons_is_the_line(tmp_path):
    done = run(FAILS.format("one"), FAILS.format("two"), folder=tmp_path)
    assert (done.returncode, done.stderr) == (1, "error: one\n")


def test_workers_that_open_leave_the_server_its_own_end(tmp_path):
    done = run(OPENS, OPENS, folder=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, "exit code 0\nexit code 0\nwent on\n", "")
    assert list(tmp_path.iterdir()) == []


def test_workers_that_die_without_a_word_are_not_replaced_for_ever(tmp_path):
    assert run(DIES, DIES, OPENS, DIES, DIES, OPENS, folder=tmp_path).returncode == 0
    done = run(DIES, DIES, DIES, OPENS, folder=tmp_path)
    assert done.returncode == 1
    assert done.stderr.startswith("error: 3 workers in a row were killed while they started")
    assert done.stdout.splitlines()[-2:] == ["exit code 1", "stopped"], "the fourth does not begin"


def test_while_another_worker_serves_no_number_of_deaths_ends_the_server(tmp_path):
    done = run(OTHER_OPENS, DIES, DIES, DIES, DIES, OPENS, folder=tmp_path)
    assert (done.returncode, done.stdout.splitlines()[-2:]) == (0, ["exit code 0", "went on"])


def test_a_worker_that_gave_up_for_the_others_is_none_that_died(tmp_path):
    done = run(GIVES_UP, GIVES_UP, GIVES_UP, OPENS, folder=tmp_path)
    assert (done.returncode, done.stdout.splitlines()[-1]) == (0, "went on")


def test_a_worker_knows_whether_another_one_serves(tmp_path):
    shown = "supervision.started(1); print('others', supervision.others_open())"
    done = run(OPENS, shown, OTHER_OPENS, shown, folder=tmp_path)
    said = [line for line in done.stdout.splitlines() if line.startswith("others")]
    assert said == ["others False", "others True"], "not itself, and not one that is dead"


def test_the_others_go_on_without_one_that_cannot_start_once_all_were_open_and_while_they_are(tmp_path):
    shown = "print('go on', supervision.others_go_on())"
    opens = "supervision.started(2)"
    done = run(shown, OTHER_OPENS, shown, opens, shown, folder=tmp_path)
    assert [line for line in done.stdout.splitlines() if line.startswith("go on")] == [
        f"go on {on}" for on in (False, False, True)
    ]
    done = run(opens, OTHER_OPENS, shown, folder=tmp_path)
    assert "go on False" in done.stdout, "they never were two"
    alone = "import os; (supervision.shared_folder() / f'open-{os.getppid()}').unlink(); " + shown
    done = run(OTHER_OPENS, opens, alone, folder=tmp_path)
    assert "go on False" in done.stdout, "nobody else is left"


def test_a_worker_that_loses_its_engine_is_replaced_but_not_for_ever(tmp_path):
    done = run(LOSES.format("one"), LOSES.format("two"), folder=tmp_path)
    assert (done.returncode, done.stdout.splitlines()[-1], done.stderr) == (0, "went on", "")
    done = run(*(LOSES.format(word) for word in ("one", "two", "three")), folder=tmp_path)
    assert (done.returncode, done.stdout.splitlines()[-1], done.stderr) == (1, "stopped", "error: three\n")


def test_engines_lost_long_ago_do_not_count(tmp_path):
    ages = "import os, pathlib; [os.utime(f, (0, 0)) for f in pathlib.Path(os.environ['TMPDIR']).glob('*/lost-*')]"
    done = run(LOSES.format("one"), LOSES.format("two"), ages, LOSES.format("three"), folder=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")


def test_where_nobody_would_take_its_place_a_lost_engine_ends_the_server(tmp_path):
    done = run(LOSES.format("gone"), folder=tmp_path, BENTOML_CONTAINERIZED="true")
    assert (done.returncode, done.stderr) == (1, "error: gone\n")
    alone = [sys.executable, "-c", "from server import supervision\n" + LOSES.format("gone")]
    done = subprocess.run(alone, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (1, "error: gone\n")


def test_a_worker_whose_parent_is_no_supervisor_of_ours_ends_alone(tmp_path):
    command = [sys.executable, "-c", "from server import supervision\n" + FAILS.format("no")]
    environment = os.environ | {"FLEXIFFUSION_SUPERVISOR": f"1:{tmp_path}"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (1, "error: no\n")
    assert list(tmp_path.iterdir()) == []


def test_a_setting_that_went_bad_ends_one_worker_and_no_others(tmp_path):
    refuses = "supervision.REFUSED_SECONDS = 0; supervision.starting(); raise supervision.refused('FLEXI_LORAS: gone')"
    done = run(OTHER_OPENS, "supervision.started(2)", *[refuses] * 4, folder=tmp_path)
    assert (done.returncode, done.stdout.splitlines()[-1]) == (0, "went on")
    assert done.stderr.count("error: a worker cannot start, and the others go on: FLEXI_LORAS: gone") == 4
