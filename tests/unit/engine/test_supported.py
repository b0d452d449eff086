"""The page of what is supported is what the code decides by."""

import pytest
from places import ROOT
from typer.testing import CliRunner

from engine.__main__ import app
from engine.importing.kinds import FOREIGN, INPUTS, PARTS
from engine.importing.lora import OTHER_KINDS

PAGE = ROOT / "docs" / "supported.md"
pytestmark = pytest.mark.filterwarnings("ignore:__array_wrap__:DeprecationWarning")  # of some schedulers of diffusers


def test_the_page_is_what_the_command_prints() -> None:
    result = CliRunner().invoke(app, ["supported"])
    assert result.exit_code == 0
    assert result.stdout == PAGE.read_text(), "run python -m engine supported > docs/supported.md"


def test_the_page_has_every_reason_to_refuse_a_file() -> None:
    page = PAGE.read_text()
    for what in (*FOREIGN.values(), *PARTS.values(), *INPUTS.values(), *OTHER_KINDS.values()):
        assert f"| {what} |" in page


def test_a_scheduler_stands_where_trying_it_puts_it() -> None:
    loads, _, refused = PAGE.read_text().split("## Schedulers")[1].partition("| refused |")
    for name in ("DDIM", "PNDM", "EulerAncestralDiscrete", "UniPCMultistep", "FlowMatchEulerDiscrete"):
        assert f"`{name}Scheduler`" in loads.partition("| refused")[0]
    for name in ("FlowMatchHeunDiscrete", "EDMEuler", "TCD", "CogVideoXDDIM"):
        assert f"`{name}Scheduler`" in refused
        assert f"`{name}Scheduler`" not in loads
