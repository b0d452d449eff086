"""Documentation is held to the code: settings, metrics, commands, links."""

import json
import re
from pathlib import Path

from prometheus_client.metrics import MetricWrapperBase

from server import config
from server.telemetry import metrics

ROOT = Path(__file__).parent.parent
OPERATIONS = (ROOT / "docs" / "operations.md").read_text()


def test_every_setting_is_documented_with_its_default_and_no_other_is() -> None:
    rows = dict(re.findall(r"^\| `(FLEXI_\w+)` \| (.+?) \|", OPERATIONS, re.MULTILINE))
    fields = {f"FLEXI_{name.upper()}": field.default for name, field in config.Settings.model_fields.items()}
    assert rows.keys() == fields.keys()
    for name, default in fields.items():
        shown = rows[name].strip("`").removesuffix(".0")
        assert shown == ("–" if default in (None, "") else str(default).removesuffix(".0")), name


def test_every_metric_is_documented_with_its_labels_and_no_other_is() -> None:
    section = OPERATIONS.split("## Metrics")[1].split("\n## ")[0]
    shown: dict[str, str] = {}
    for names, labels in re.findall(r"^\| (`flexi.+?) \| (.+?) \|", section, re.MULTILINE):
        shown |= dict.fromkeys(re.findall(r"flexi_\w+", names), labels)
    real = {}
    for metric in vars(metrics).values():
        if isinstance(metric, MetricWrapperBase):
            name = metric._name + ("_total" if metric._type == "counter" else "")
            real[name] = ", ".join(metric._labelnames) or "–"
    assert shown == real


def test_links_between_documents_lead_somewhere() -> None:
    for page in (ROOT / "README.md", *ROOT.glob("docs/*.md"), *ROOT.glob("models/*/README.md")):
        for target in re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name} -> {target}"


def test_examples_of_json_are_json() -> None:
    examples = [
        example for page in ROOT.glob("docs/*.md") for example in re.findall(r"```json\n(.+?)```", page.read_text(), re.DOTALL)
    ]
    policies = [found["Version"] for example in examples if "Statement" in (found := json.loads(example))]
    assert policies == ["2012-10-17"]


def test_the_readme_names_only_make_targets_that_exist() -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"\bmake ([a-z]+)\b", (ROOT / "README.md").read_text())) <= targets


def test_the_glossary_has_each_word_once() -> None:
    words = re.findall(r"^\| ([^|]+?) \|", (ROOT / "docs" / "glossary.md").read_text(), re.MULTILINE)
    assert len(words) == len(set(words)) > 20
