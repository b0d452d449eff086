"""The words of the code: one meaning each, in the glossary, for class names and for metrics."""

import ast
import re
from collections import defaultdict
from pathlib import Path

from prometheus_client.metrics import MetricWrapperBase

from server.telemetry import metrics

ROOT = Path(__file__).parent.parent
PACKAGES = ("registry", "engine", "evaluation", "search_jobs", "server", "benchmarks", "loadtests", "examples", "deploy")
COLUMNS = 4  # word, meaning, elsewhere called, in code

# Private words for what the field has a name for. No class is called so any more, in whole or in part.
RETIRED = {
    "Anatomy", "Aloft", "Crew", "Desk", "Dispatcher", "Door", "Hand", "House", "InForce", "Journey", "Launched", "Lead", "Live",
    "Oldest", "Order", "Orders", "Picture", "Texts", "Ticket", "Told", "Trials", "Underway", "Visit",
}  # fmt: skip

# What a metric's name may say besides words of the glossary: what is counted or measured, units, and plain English.
PLAIN = {
    "bytes", "seconds", "timestamp", "info", "http", "responses", "errors", "success", "distance", "up",
    "running", "finished", "planned", "rejected", "unreported",
    "served", "unserved", "oldest", "swept", "objects", "expiry",
}  # fmt: skip


def classes() -> dict[str, list[str]]:
    """Files by the public class names that they define, nested ones too."""
    files = defaultdict(list)
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                    files[node.name].append(path.relative_to(ROOT).as_posix())
    return files


def glossary() -> list[list[str]]:
    """The cells of every line of the glossary's tables."""
    lines = [line for line in (ROOT / "docs" / "glossary.md").read_text().splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines if not line.startswith("| word |")]


def words() -> set[str]:
    """The glossary's single words, lower case, in singular and plural, and its terms written together."""
    terms = [re.sub(r"`.*`| \(.*\)", "", term).lower() for cells in glossary() for term in cells[0].split(", ")]
    singles = {word for term in terms for word in term.split()} | {term.replace(" ", "") for term in terms}
    return singles | {f"{word}s" for word in singles}


def flexi_metrics() -> list[MetricWrapperBase]:
    return [metric for metric in vars(metrics).values() if isinstance(metric, MetricWrapperBase)]


def test_no_public_class_name_is_defined_twice() -> None:
    assert {name: files for name, files in classes().items() if len(files) > 1} == {}


def test_retired_words_name_no_class() -> None:
    known = classes()
    named = {name for name in known if set(re.findall(r"[A-Z][a-z]*", name)) & RETIRED or name in RETIRED}
    assert {name: known[name] for name in named} == {}


def test_every_line_of_the_glossary_has_a_meaning_the_word_elsewhere_and_classes_that_exist() -> None:
    known = classes()
    for cells in glossary():
        assert len(cells) == COLUMNS, cells
        assert all(cells), cells
        named = re.findall(r"`([^`]+)`", cells[3])
        assert bool(named) != (cells[3] == "–"), cells
        for name in named:
            assert name in known, f"{cells[0]}: there is no class {name}"
    assert len(glossary()) > 80


def test_no_word_of_the_glossary_is_retired() -> None:
    assert {word.capitalize() for cells in glossary() for word in cells[0].split()} & RETIRED == set()


def test_metrics_say_rows_where_they_count_rows_of_the_unet_and_images_where_they_count_images() -> None:
    for metric in flexi_metrics():
        said = metric._name.split("_")
        assert ("rows" in said) == metric._documentation.startswith("UNet rows"), metric._name
        if metric._documentation.startswith(("Images ", "Sampled images ")):
            counted = {"images", "psnr", "distance"}
            assert set(said) & counted, metric._name


def test_metrics_are_named_in_words_of_the_glossary() -> None:
    known = words() | PLAIN
    for metric in flexi_metrics():
        assert metric._name.startswith("flexi_")
        unknown = set(metric._name.removeprefix("flexi_").split("_")) - known
        assert not unknown, f"{metric._name}: {unknown}"
    spoken = {word for metric in flexi_metrics() for word in metric._name.split("_")}
    assert spoken >= PLAIN, "a plain word that no metric uses"
    assert PLAIN & words() == set(), "a word of the glossary needs no second mention"
