"""Documentation is held to the code: settings, metrics, commands, links."""

import json
import re
from fnmatch import fnmatchcase
from pathlib import Path

import numpy as np
import typer
from prometheus_client.metrics import MetricWrapperBase

from examples import demo
from registry import verify
from registry.__main__ import app as registry_commands
from registry.experiments.declaration import Experiment
from server import config
from server.experiments import events
from server.http import openai
from server.jobs import job_store
from server.operator_events import announcer
from server.requests import fidelity, warnings
from server.storage import kept_files
from server.telemetry import metrics
from server.webhooks import delivery

ROOT = Path(__file__).parent.parent
OPERATIONS = (ROOT / "docs" / "operations.md").read_text()
SERVERS_FOLDERS = {job_store.FOLDER, kept_files.FOLDER, announcer.FOLDER}  # of no model


def test_every_setting_is_documented_with_its_default_and_no_other_is() -> None:
    rows = dict(re.findall(r"^\| `(FLEXI_\w+)` \| (.+?) \|", OPERATIONS, re.MULTILINE))
    fields = {f"FLEXI_{name.upper()}": field.default for name, field in config.Settings.model_fields.items()}
    assert rows.keys() == fields.keys()
    for name, default in fields.items():
        shown = rows[name].strip("`").removesuffix(".0")
        assert shown == ("–" if default in (None, "", ()) else str(default).removesuffix(".0")), name


def test_every_limit_of_a_setting_stands_in_its_row() -> None:
    rows = dict(re.findall(r"^\| `(FLEXI_\w+)` \| .+? \| (.+) \|$", OPERATIONS, re.MULTILINE))
    limits = 0
    for name, field in config.Settings.model_fields.items():
        for rule in field.metadata:
            for kind in ("ge", "gt", "le", "lt", "max_length"):
                limit = getattr(rule, kind, None)
                if limit is not None:
                    shown = str(limit).removesuffix(".0")
                    row = rows[f"FLEXI_{name.upper()}"]
                    assert re.search(rf"(?<![\d.]){re.escape(shown)}(?!\.?\d)", row), f"{name}: {kind} {shown}"
                    limits += 1
    assert limits > 40


def test_every_command_of_the_registry_stands_in_its_table() -> None:
    section = OPERATIONS.split("\n## Registry\n")[1].split("\n## ")[0]
    table = section.split("| command | what it does |\n|---|---|\n")[1].split("\n\n")[0]
    shown = [name for row in table.splitlines() for name in re.findall(r"`(\w+)", row.split(" | ")[0])]
    group = typer.main.get_command(registry_commands)
    assert isinstance(group, typer.core.TyperGroup)
    assert sorted(shown) == sorted(group.commands)
    (silent,) = re.findall(r"for scripts \((.+?) only print one line\)", section)
    without = {name for name, command in group.commands.items() if "as_json" not in {option.name for option in command.params}}
    assert set(re.findall(r"`(\w+)`", silent)) == without


def test_what_is_where_has_every_folder_of_a_registry() -> None:
    table = OPERATIONS.split("**What is where**")[1].split("\n\n")[1]
    shown = set(re.findall(r"`\{model\}/(\w+)/", table)) | set(re.findall(r"`(_\w+/)…`", table))
    assert shown == {*verify.RECORDS, *verify.OF_EXPERIMENTS, *verify.BESIDE} | SERVERS_FOLDERS


def test_the_bucket_policy_lets_servers_write_what_they_write_and_nothing_else() -> None:
    (policy,) = [json.loads(one) for one in re.findall(r"```json\n(.+?)```", OPERATIONS, re.DOTALL) if '"Statement"' in one]
    actions = {
        resource.removeprefix("arn:aws:s3:::BUCKET/PREFIX/"): str(statement["Action"])
        for statement in policy["Statement"]
        if statement["Sid"].startswith("Servers")
        for resource in statement["Resource"]
    }

    def may(action: str, key: str) -> bool:
        return any(action in actions[resource] for resource in actions if fnmatchcase(key, resource))

    streams = (events.stream("fewer"), events.pair_stream("balanced"), events.FEEDBACK, events.FIDELITY)
    assert {stream.split("/")[0] for stream in streams} == {*verify.OF_EXPERIMENTS} - {"approvals", "holds"}
    for key in ("experiments/fewer/state.json", *(f"{stream}/2026-11-29/1.jsonl" for stream in streams)):
        assert may("s3:PutObject", f"emoji64/{key}"), key
    for folder in SERVERS_FOLDERS:
        assert may("s3:PutObject", f"{folder}one"), folder
        assert may("s3:DeleteObject", f"{folder}one"), folder
    folders = {*verify.RECORDS, *verify.BESIDE, "approvals", "holds"}
    for key in (
        *(f"{folder}/one.json" for folder in folders),
        "experiments/fewer/000001.json",
        "candidates/balanced/state.json",
    ):
        assert not may("s3:PutObject", f"emoji64/{key}"), key


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


def test_every_warning_of_the_server_is_documented() -> None:
    section = (ROOT / "docs" / "api.md").read_text().split("## Warnings")[1].split("\n## ")[0]
    shown = set(re.findall(r"^\| `(\w+)`", section, re.MULTILINE))
    codes = {value for name, value in vars(warnings).items() if name.isupper() and isinstance(value, str)}
    assert shown == codes | {"safety_checker_not_run"}
    assert codes >= warnings.NOT_OF_THE_IMAGE != set()


def test_every_quality_of_openai_is_documented_with_its_tier() -> None:
    (said,) = re.findall(r"`quality` chooses the tier: (.+?)\.\n", (ROOT / "docs" / "api.md").read_text())
    pairs = re.findall(r"((?:`\w+`[^`]*?)+?) (?:is|are) `(\w+)`", said)
    assert {quality: tier for words, tier in pairs for quality in re.findall(r"`(\w+)`", words)} == openai.TIERS


def test_every_field_of_a_declaration_is_in_its_table_and_all_that_must_be_there_in_the_example() -> None:
    text = (ROOT / "docs" / "experiments.md").read_text()
    example = next(json.loads(one) for one in re.findall(r"```json\n(.+?)```", text, re.DOTALL))
    rows = set(re.findall(r"^\| `(\w+)` \|", text.split("\n## Declare\n")[1].split("\n## ")[0], re.MULTILINE))
    plain = {"format", "name", "version", "tier", "arms", "unit"}  # what the text around says
    assert Experiment.model_fields.keys() == rows - {"weight"} | plain
    required = {name for name, field in Experiment.model_fields.items() if field.is_required()}
    assert required <= example.keys()


def test_a_webhook_is_called_again_when_its_page_says() -> None:
    (said,) = re.findall(r"is made again after (.+?); 410 ends it", (ROOT / "docs" / "api.md").read_text())
    units = {"s": 1, "min": 60, "an hour": 3600}
    times = re.findall(r"(?:(\d+) )?(s|min|an hour)\b", said)
    assert len(times) == len(re.split(r", | and ", said))
    assert tuple(int(count or 1) * units[unit] for count, unit in times) == delivery.PAUSES


def test_the_running_rfid_begins_when_its_page_says() -> None:
    (fewest,) = re.findall(r"from (\d+) images of an arm on, the running rFID", (ROOT / "docs" / "experiments.md").read_text())
    window = fidelity.FeatureWindow("of one schedule")
    computed = [window.add(np.eye(3)[i % 3], np.eye(3)[i % 3]) is not None for i in range(int(fewest))]
    assert computed == [False] * (int(fewest) - 1) + [True]


def test_links_between_documents_lead_somewhere() -> None:
    for page in (ROOT / "README.md", *ROOT.glob("docs/*.md"), *ROOT.glob("*/README.md"), *ROOT.glob("models/*/README.md")):
        for target in re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name} -> {target}"


def test_the_demos_experiment_can_be_declared_and_has_users_enough() -> None:
    experiment = Experiment.model_validate(demo.declared("demo", control="a" * 64, cheaper="b" * 64))
    deviation = demo.USERS**0.5 / 2  # of the users of one arm of two
    assert demo.USERS / 2 - 3 * deviation > experiment.minimum_units == demo.FEWEST


def test_examples_of_json_are_json() -> None:
    examples = [
        example for page in ROOT.glob("docs/*.md") for example in re.findall(r"```json\n(.+?)```", page.read_text(), re.DOTALL)
    ]
    policies = [document["Version"] for document in map(json.loads, examples) if "Statement" in document]
    assert policies == ["2012-10-17"]


def test_the_readme_names_only_make_targets_that_exist() -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"\bmake ([a-z]+)\b", (ROOT / "README.md").read_text())) <= targets


def test_the_glossary_has_each_word_once() -> None:
    words = re.findall(r"^\| (?!word \|)([^|]+?) \|", (ROOT / "docs" / "glossary.md").read_text(), re.MULTILINE)
    assert len(words) == len(set(words)) > 20


def records(page: str) -> list[tuple[str, str]]:
    """(heading, body) of each section of a page."""
    parts = re.split(r"^## (.+)$", (ROOT / "docs" / page).read_text(), flags=re.MULTILINE)[1:]
    return list(zip(parts[::2], parts[1::2], strict=True))


def test_decisions_are_numbered_without_gaps_and_each_has_a_date_a_status_and_what_would_change_it() -> None:
    decisions = records("decisions.md")
    for number, (heading, body) in enumerate(decisions, start=1):
        assert heading.startswith(f"{number} · "), heading
        status = re.match(r"\n\n20\d\d-\d\d-\d\d · (accepted|(?:superseded|amended) by \d+(?:, \d+)*)\n\n", body)
        assert status, heading
        for later in map(int, re.findall(r"\d+", status[1])):
            assert number < later <= len(decisions), heading
        assert len(re.findall(r"^\*Would change it:\* .", body, re.MULTILINE)) == 1, heading
    assert len(decisions) >= 69


def test_every_measurement_has_a_date_a_machine_and_a_command_and_figures() -> None:
    measurements = records("measurements.md")
    for heading, body in measurements:
        lines = body.strip().split("\n")
        assert re.fullmatch(r"\* Date: 20\d\d-\d\d-\d\d", lines[0]), heading
        assert re.fullmatch(r"\* Machine: .+", lines[1]), heading
        assert re.search(r"^\* Command: .*(`.+`|not recorded)", lines[2]), heading
        assert re.search(r"\d", "".join(lines[3:])), heading
    assert len({heading for heading, _ in measurements}) == len(measurements) > 15


def test_commands_of_measurements_are_modules_and_make_targets_that_exist() -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for heading, body in records("measurements.md"):
        command = body.split("* Command: ")[1].split("\n")[0]
        assert set(re.findall(r"`make ([a-z]+)", command)) <= targets, heading
        for module in re.findall(r"python -m ((?!pytest)[\w.]+)", command):
            path = ROOT / module.replace(".", "/")
            assert (path / "__main__.py").exists() or path.with_suffix(".py").exists(), f"{heading}: {module}"
        for file in re.findall(r"(?:tests|models)/[\w./-]+", command):
            assert (ROOT / file).exists(), f"{heading}: {file}"


def test_links_into_pages_lead_to_their_headings() -> None:
    for page in (ROOT / "README.md", *ROOT.glob("docs/*.md"), ROOT / "loadtests" / "README.md"):
        for target, anchor in re.findall(r"\]\((?!https?:)([^)#]*)#([^)]+)\)", page.read_text()):
            text = ((page.parent / target) if target else page).read_text()
            headings = [heading.replace("`", "") for heading in re.findall(r"^#+ (.+)$", text, re.MULTILINE)]
            anchors = {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
            assert anchor in anchors, f"{page.name} -> {target}#{anchor}"


def test_the_architecture_page_names_every_folder_and_only_paths_that_exist() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text()
    folders = set(re.findall(r"\*\*`([\w/]+)/`\*\*", text))
    rooms = {path.parent.relative_to(ROOT).as_posix() for top in ("registry", "server") for path in ROOT.glob(f"{top}/*/*.py")}
    tops = {path.parent.name for path in ROOT.glob("*/__init__.py")} | {"models", "deploy"}
    assert rooms | tops <= folders
    for path in re.findall(r"`((?:registry|engine|evaluation|search_jobs|server|benchmarks|tests)/[\w./]*)`", text):
        assert (ROOT / path).exists(), path
