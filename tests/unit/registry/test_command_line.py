"""Every command of the project, and every exception: one line on stderr and an exit code; `--debug` shows the rest."""

from __future__ import annotations

import errno
import json
import logging
import os
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import typer
from places import ROOT
from typer.testing import CliRunner

from registry.commands.command_line import command_line, one_line_errors, run_command
from registry.errors import InvalidInput

MODEL = str(ROOT / "models" / "emoji64")


def _decode() -> None:
    b"\xff".decode()


def _torch(name: str, text: str) -> Exception:
    """As torch raises it, without torch."""
    return type(name, (RuntimeError,), {"__module__": "torch"})(text)


FOREIGN: list[tuple[BaseException, str]] = [
    (InvalidInput("two\nlines", param="x"), "error: x: two lines"),
    (PermissionError(errno.EACCES, "Permission denied", "/a/b"), "error: /a/b: Permission denied: this user lacks"),
    (OSError(errno.ENOSPC, "No space left on device"), "error: No space left on device: make room there"),
    (IsADirectoryError(errno.EISDIR, "Is a directory", "x\x1b[2J\n"), r"error: x\x1b[2J: Is a directory"),
    (NotADirectoryError(errno.ENOTDIR, "Not a directory", b"\xff"), "Not a directory"),
    (OSError(errno.ELOOP, "Too many levels of symbolic links", "a"), "error: a: Too many levels"),
    (OSError(errno.ENAMETOOLONG, "File name too long", 5000 * "a"), "…: File name too long"),
    (FileExistsError(errno.EEXIST, "File exists", "a", None, "b"), "error: a → b: File exists"),
    (ConnectionRefusedError(errno.ECONNREFUSED, "Connection refused"), "check the address, the network"),
    (TimeoutError("timed out"), "timed out: check the address"),
    (MemoryError(), "error: out of memory: use a smaller batch"),
    (_torch("OutOfMemoryError", "CUDA out of memory. Tried to allocate 2 GiB. GPU 0"), "error: CUDA out of memory: use"),
    (RuntimeError("No CUDA GPUs are available"), "check --device"),
    (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"), "use a smaller batch"),
    (ModuleNotFoundError("No module named 'distributed'"), "install the project's packages"),
    (subprocess.CalledProcessError(2, ["git", "x"]), "error: the program git x ended with 2"),
    (json.JSONDecodeError("Expecting value", "", 0), "is not the JSON that it should be"),
    (tarfile.ReadError("truncated"), "error: truncated: a file is damaged"),
    (zipfile.BadZipFile("File is not a zip file"), "a file is damaged"),
    (EOFError(), "error: EOFError: a file is damaged"),
    (RecursionError("maximum"), "nested too deeply"),
]  # fmt: skip


def application(fail: Callable[[], None]) -> typer.Typer:
    app = command_line(help="Fails.")

    @app.command()
    def fails() -> None:
        fail()

    @app.command()
    def other() -> None: ...

    return app


def raises(error: BaseException) -> Callable[[], None]:
    def fail() -> None:
        raise error

    return fail


@pytest.mark.parametrize(("error", "words"), FOREIGN, ids=[type(error).__name__ for error, _ in FOREIGN])
def test_what_others_raise_is_one_line_that_says_what_to_do(error: BaseException, words: str) -> None:
    result = CliRunner().invoke(application(raises(error)), ["fails"])
    assert (result.exit_code, result.stderr.count("\n")) == (1, 1), result.stderr
    assert result.stderr.startswith("error: ")
    assert words in result.stderr
    assert "\x1b" not in result.stderr


def test_a_text_that_is_not_utf8_is_told() -> None:
    assert "not UTF-8 (byte 0" in CliRunner().invoke(application(_decode), ["fails"]).stderr


def test_a_library_is_known_by_its_package() -> None:
    for package, words in (
        ("botocore.exceptions", "S3 failed"),
        ("distributed.comm.core", "Dask failed"),
        ("httpx", "a request failed"),
    ):
        error = type("OddError", (Exception,), {"__module__": package})("https://ada:hunter2@host/?X-Amz-Signature=hunter2&x=1")
        result = CliRunner().invoke(application(raises(error)), ["fails"])
        assert result.exit_code == 1
        assert words in result.stderr
        assert "hunter2" not in result.stderr


@pytest.mark.parametrize("error", [TypeError("x"), AssertionError(), KeyError("a"), RuntimeError("odd"), ValueError("odd")])
def test_a_bug_is_one_line_too_and_has_an_exit_code_of_its_own(error: Exception) -> None:
    result = CliRunner().invoke(application(raises(error)), ["fails"])
    assert (result.exit_code, result.stderr.count("\n")) == (70, 1)
    for words in ("a fault of this program", type(error).__name__, "tests/unit/registry/test_command_line.py, line", "--debug"):
        assert words in result.stderr


@pytest.mark.parametrize("words", [["--debug", "fails"], ["fails", "--debug"]])
@pytest.mark.parametrize("error", [InvalidInput("mine"), OSError(errno.ENOSPC, "full"), TypeError("bug")])
def test_debug_shows_the_traceback_above_the_line(words: list[str], error: Exception) -> None:
    plain = CliRunner().invoke(application(raises(error)), ["fails"])
    level = logging.getLogger().level
    shown = CliRunner().invoke(application(raises(error)), words)
    assert logging.getLogger().level == level
    assert shown.exit_code == plain.exit_code
    assert shown.stderr.startswith("Traceback (most recent call last)")
    assert shown.stderr.endswith(plain.stderr)
    assert "Traceback" not in plain.stderr


def test_a_stop_from_the_keyboard_is_no_fault() -> None:
    result = CliRunner().invoke(application(raises(KeyboardInterrupt())), ["fails"])
    assert (result.exit_code, result.stderr) == (130, "stopped\n")


def test_wrong_usage_is_one_line() -> None:
    for words in (["nothing"], ["fails", "--odd"], ["fails", "more"]):
        result = CliRunner().invoke(application(raises(KeyError())), words)
        assert (result.exit_code, result.stderr.count("\n")) == (2, 1)
        assert result.stderr.startswith("error: ")
        assert "--help" in result.stderr


def test_a_program_of_one_command_keeps_to_it_too(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def main(number: int) -> int:
        if number > 5:
            raise OSError(errno.ENOSPC, "full")
        return number

    for words, code, line in ((["3"], 3, ""), (["7"], 1, "error: full"), (["x"], 2, "error: Invalid value")):
        monkeypatch.setattr(sys, "argv", ["main", *words])
        with pytest.raises(SystemExit) as ended:
            run_command(main)
        assert ended.value.code == code
        assert capsys.readouterr().err.startswith(line)


def test_a_context_manager_ends_with_the_same_line(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended, one_line_errors():
        raise OSError(errno.EROFS, "Read-only file system", "x")
    assert ended.value.code == 1
    assert capsys.readouterr().err == "error: x: Read-only file system: name a place that can be written\n"


def test_output_that_nobody_takes_is_no_traceback(tmp_path: Path) -> None:
    def run(command: str) -> subprocess.CompletedProcess[str]:
        line = f"{sys.executable} -m registry list --registry {tmp_path / 'none'} --help {command}"
        return subprocess.run(["bash", "-c", f"set -o pipefail; {line}"], cwd=ROOT, capture_output=True, text=True, timeout=60)

    full, gone = run("> /dev/full"), run("| true")
    assert (full.returncode, full.stderr) == (1, "error: No space left on device: make room there\n")
    assert "Traceback" not in gone.stderr
    assert "Exception" not in gone.stderr
    assert "error" not in gone.stderr


@pytest.mark.parametrize("module", ["registry", "search_jobs"])
def test_a_closed_output_is_no_fault(module: str) -> None:
    line = f"{sys.executable} -m {module} --help >&-"
    ended = subprocess.run(["bash", "-c", line], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (ended.returncode, ended.stderr) == (0, "")


# Files that are not what a command wants. The tests may run as root, whom permissions do not stop.
def odd_files(folder: Path) -> Iterator[Path]:
    (folder / "a file").write_text("{}")
    yield folder / "missing"
    yield folder
    yield folder / "a file" / "below"
    yield Path("/proc/self/mem")
    yield folder / ("a" * 300)
    (folder / "loop").symlink_to("loop")
    yield folder / "loop"
    for name, data in {
        "empty": b"",
        "garbage": bytes(range(256)) * 9,
        "null": b"null",
        "list": b"[[]]",
        "object": b"{}",
        "deep": b"[" * 100_000,
        "number": b"1e999999",
        "latin": '"\xe9"'.encode("latin-1"),
        "half": b'{"format": "flexi',
        "pem": b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n",
        "\udcff name": b"{}",
    }.items():
        path = folder / name
        with open(os.fsencode(path), "wb") as file:  # noqa: PTH123 - a name that is no text
            file.write(data)
        yield path


COMMANDS: dict[str, tuple[str, list[str]]] = {
    "publish": ("registry", ["publish", "FILE"]),
    "sign": ("registry", ["sign", "1", "--key", "FILE"]),
    "import": ("registry", ["import", "FILE"]),
    "verify": ("registry", ["verify", "--trusted-keys", "FILE"]),
    "a registry": ("registry", ["show", "fast", "--registry", "FILE"]),
    "a registry to write": ("registry", ["import", "a.tar", "--registry", "FILE"]),
    "keygen": ("registry", ["keygen", "FILE/key"]),
    "export": ("registry", ["export", "FILE/bundle.tar"]),
    "keys": ("server.access", ["list", "--file", "FILE"]),
    "a new key": ("server.access", ["new", "ada", "--file", "FILE/keys"]),
    "declare": ("server.experiments", ["declare", "FILE"]),
    "macs": ("engine", ["macs", "FILE"]),
    "generate by a schedule": ("engine", ["generate", "--schedule", "FILE", "--model", "FILE", "--prompt", "x"]),
    "generate to": ("engine", ["generate", "--out", "FILE/a.png", "--model", "FILE"]),
    "report": ("search_jobs", ["report", "FILE"]),
    "publish a run": ("search_jobs", ["publish", "FILE"]),
    "compare": ("search_jobs", ["compare", "FILE"]),
    "evaluate": ("search_jobs", ["evaluate", "FILE", "--model", "FILE"]),
    "run a model": ("search_jobs", ["run", "--model", "FILE", "--out", "OUT"]),
    "run on prompts": ("search_jobs", ["run", "--model", MODEL, "--prompts", "FILE", "--out", "OUT"]),
    "run with features": ("search_jobs", ["run", "--model", MODEL, "--features", "FILE", "--out", "OUT"]),
}  # fmt: skip


FINE = {("keys", "object"), ("keys", "\udcff name")}  # a file of no keys
RIGHT = {("run on prompts", "pem")}  # three lines are three prompts


@pytest.mark.parametrize("name", COMMANDS)
def test_a_file_that_is_not_what_a_command_wants_is_one_line(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module, words = COMMANDS[name]
    monkeypatch.setenv("FLEXI_REGISTRY", str(tmp_path / "registry"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    app = __import__(f"{module}.__main__", fromlist=["app"]).app
    for path in odd_files(tmp_path):
        if (name, path.name) in RIGHT:
            continue
        line = [word.replace("FILE", str(path)).replace("OUT", str(tmp_path / "out")) for word in words]
        result = CliRunner().invoke(app, line)
        fine = result.exit_code == 0 and (name, path.name) in FINE | {("keygen", tmp_path.name), ("a new key", tmp_path.name)}
        assert fine or result.exit_code in (1, 2), (path, result.output, result.exception)
        assert fine or result.stderr.startswith("error: "), (path, result.stderr)
        assert fine or result.stderr.count("\n") == 1, (path, result.stderr)
