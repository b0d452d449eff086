"""A model that is opened beside one that is served: it holds nobody up, and what fails leaves nothing behind."""

from __future__ import annotations

import asyncio
import threading

import pytest

from models.bundled import BUNDLED
from registry.errors import InvalidInput
from server.config import Settings
from server.models import opener
from server.models.opener import ModelOpener


@pytest.fixture
def opening(tmp_path):
    """The opener, and the second of its models; none is loaded."""
    folders = ",".join(str(BUNDLED[name].folder) for name in ("emoji64", "glyphs-ddpm"))
    made = ModelOpener(Settings(models=folders, registry=str(tmp_path / "registry"), state=tmp_path / "state"))
    return made, made.models[1]


def opened(opening):
    made, served = opening

    async def go():
        await made.open_beside(served)
        await served.close()

    asyncio.run(asyncio.wait_for(go(), 60))
    return served


@pytest.mark.parametrize("name", ["ActiveSchedules", "bytes_within", "PromptReader"])
def test_what_takes_long_is_not_done_on_the_event_loop(opening, monkeypatch, name):
    plain, threads = getattr(opener, name), set()

    def noted(*given, **named):
        threads.add(threading.current_thread())
        return plain(*given, **named)

    monkeypatch.setattr(opener, name, noted)
    assert opened(opening).state == "unloaded"
    assert threads
    assert threading.main_thread() not in threads


def test_a_model_that_could_not_be_opened_at_first_leaves_no_recorder_behind(opening, monkeypatch):
    plain, tries, recorders = opener.PromptReader, [], []

    def failing(*given):
        tries.append(given)
        recorders.append([thread for thread in threading.enumerate() if thread.name.startswith("recorder")])
        if len(tries) < 3:
            raise InvalidInput("the tokenizer is damaged")
        return plain(*given)

    monkeypatch.setattr(opener, "PromptReader", failing)
    monkeypatch.setattr(opener, "RETRY", 0.0)
    assert opened(opening).state == "unloaded"
    assert recorders == [[], [], []]
