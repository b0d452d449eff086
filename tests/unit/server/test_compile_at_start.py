"""What a start compiles is in the metrics, and nothing is compiled after it."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from functools import partial

import model_folders
import pytest
import torch
from torch._dynamo.testing import CompileCounter

from engine import compiling, loading
from server import config
from server.models.loading import compile_model, load_first
from server.telemetry import metrics


@pytest.fixture
def counter(monkeypatch, tmp_path):
    """Counts graphs in the compiler's place, which would take minutes."""
    torch.compiler.reset()
    counter = CompileCounter()
    monkeypatch.setattr(loading, "Compilation", partial(compiling.Compilation, counter))
    monkeypatch.setenv("FLEXI_MODEL", str(model_folders.labels(tmp_path / "model")))
    monkeypatch.setenv("FLEXI_COMPILE", "on")
    monkeypatch.setenv("FLEXI_COMPILE_CACHE", str(tmp_path / "cache"))
    for name in ("TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR"):
        monkeypatch.setenv(name, "")
    yield counter
    compiling.allow()
    torch.compiler.reset()


def elsewhere(work, *given):
    """In a thread of its own, as at a server's start."""
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(work, *given).result()


def test_a_start_compiles_all_and_forbids_the_rest(counter, tmp_path):
    """It compiles in another thread than it loads in, and Dynamo's settings are a thread's own."""
    settings = config.load()
    model = elsewhere(load_first, settings)
    (tmp_path / "cache").mkdir(exist_ok=True)
    (tmp_path / "cache" / "kernel").write_bytes(b"kernel")
    elsewhere(compile_model, settings, model)
    unsaid = elsewhere(lambda: torch._dynamo.config.recompile_limit)  # of a thread where nobody said more
    assert counter.frame_count > unsaid
    assert metrics.compiled_graphs.labels("miss")._value.get() == counter.frame_count
    assert metrics.compiled_graphs.labels("hit")._value.get() == 0
    assert metrics.compile_seconds._value.get() > 0
    assert metrics.compile_cache_bytes._value.get() == compiling.cache_bytes(tmp_path / "cache") >= len(b"kernel")
    with pytest.raises(RuntimeError, match="fail_on_recompile"):
        compiling.Compilation(counter).region(lambda hidden: hidden + 1)(torch.zeros(2, 3))
