"""docs/supported.md: what loads, what is imported and what is refused, as the code that decides it has it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import get_args

from engine.components import COMPONENTS
from engine.config import BLOCKS, SETTINGS
from engine.families.dit import SETTINGS as DIT_SETTINGS
from engine.families.pixart import SETTINGS as PIXART_SETTINGS
from engine.families.table import FAMILIES
from engine.flow import REFUSED as FLOW_REFUSED
from engine.flow import SCHEDULER as FLOW
from engine.importing.kinds import FOREIGN, INPUTS, KINDS, PARTS
from engine.importing.lora import LEFT_OUT, OTHER_KINDS, ROLES
from engine.importing.tensor_file import FLOATS, PICKLES
from engine.pipelines import HARMLESS, RUN, SERVED
from engine.schedulers import REFUSED, REFUSED_BY, nearest_solver, noise_levels
from engine.text_layouts import CLIP, LAYOUTS, SETTING, TextLayout
from registry.errors import Unsupported
from registry.schedule import SolverName

HEAD = """# What is supported, and what is refused

Written by `python -m engine supported > docs/supported.md` from the tables by which the code decides, and from trying it; a
test holds this page to it. [Models](models.md) says how folders are understood, and why. What is refused is refused by name,
before any weights are read.
"""
Row = Sequence[str]


def page() -> str:
    """The whole page, in Markdown."""
    return "\n".join([HEAD, *_folders(), *_schedulers(), *_files()])


def _folders() -> Iterator[str]:
    yield "## Folders\n"
    yield "Pipelines that are served as what they are:\n"
    yield "\n".join(f"* `{name}`" for name in sorted(SERVED)) + "\n"
    run, harmless = (", ".join(f"`{name}`" for name in sorted(names)) for names in (RUN, HARMLESS))
    yield f"Any other pipeline is served as the plain one of its components, as long as it has none but {run}.\n"
    yield f"These may be there, and are not run: {harmless}. Any other component is refused, naming it and the pipeline.\n"
    classes = [
        (f"`{name}`", _listed(sorted(filter(None, known))), "yes" if None in known else "no")
        for name, known in COMPONENTS.items()
    ]
    others = sorted({name for family in FAMILIES if family.component not in COMPONENTS for name in family.classes})
    classes.append(("`transformer`", _listed(others), "instead of `unet`"))
    yield _table(("component", "classes", "may be missing"), [row for row in classes if row[1]])
    yield "Beside these transformers text encoders are others, each with a tokenizer of its name:\n"
    rows = [(f"`{name}`", *_encoders(layout)) for name, layout in LAYOUTS.items() if name in others]
    yield _table(("transformer", *(f"`{name}`" for name in CLIP.encoders), f"tokens of T5, without `{SETTING}`"), rows)
    yield _table(("blocks of the UNet", "known"), [(f"`{field}`", _listed(sorted(known))) for field, known in BLOCKS.items()])
    settings = [(f"`{name}`", _values(values)) for name, values in SETTINGS.items()]
    yield _table(("setting of the UNet", "values that run"), settings)
    for family, known in (("DiT", DIT_SETTINGS), ("PixArt", PIXART_SETTINGS)):
        rows = [(f"`{name}`", _values(values)) for name, values in known.items()]
        yield _table((f"setting of the transformer of a {family}", "values that run"), rows)


def _encoders(layout: TextLayout) -> Iterator[str]:
    """A text encoder's class, and whether it may be missing; and how many tokens T5 reads."""
    for known in layout.encoders.values():
        yield _listed(known) + (" or none" if None in known and known != (None,) else "")
    yield " or ".join(map(str, filter(None, (layout.tokens, layout.other_tokens))))


def _schedulers() -> Iterator[str]:
    yield "## Schedulers\n"
    yield "What a model was trained on is what its own scheduler says. Which solver walks it is the schedule's choice.\n"
    loads, refused = [], {}
    for name in _diffusers_schedulers():
        try:
            noise_levels({"_class_name": name})
            loads.append((f"`{name}`", f"`{nearest_solver(name)}`"))
        except Unsupported as error:
            refused[name] = str(error).replace(repr(name), "…").replace(name, "…")
    yield _table(("scheduler of a folder", "nearest solver here"), loads)
    yield _table(("refused", "in these words"), [(_spelt(names), what) for names, what in _by_meaning(refused)])
    rows = [(f"`{name}`", "all", _values(values)) for name, values in REFUSED.items()]
    for name, values in sorted(_read_by_some().items()):
        rows.append(
            (f"`{name}`", _listed(solver for solver in get_args(SolverName) if name in REFUSED_BY[solver]), _values(values))
        )
    rows += [(f"`{name}`", f"all, in a `{FLOW}`", _values(values)) for name, values in FLOW_REFUSED.items()]
    yield "A setting that all solvers read keeps a folder from loading; one that some read keeps these from being chosen.\n"
    yield _table(("setting of a scheduler", "read by", "values that run"), rows)


def _files() -> Iterator[str]:
    yield "## Single files, for `python -m engine import`\n"
    yield _table(
        ("a checkpoint of", "known by the width of its context"), [(name, f"{width}") for width, (name, _) in KINDS.items()]
    )
    yield f"Numbers: {_listed(FLOATS)}; quantised ones are refused. Pickles ({_listed(PICKLES)}) only with `--allow-pickle`.\n"
    wrong = [(_spelt(parts), what) for parts, what in _by_meaning({**FOREIGN, **PARTS})]
    wrong += [(f"{channels} channels go into the UNet", what) for channels, what in INPUTS.items()]
    yield _table(("a tensor is called", "so the file is refused as"), wrong)
    yield f"A LoRA's tensors end in one of {_listed(ROLES)}.\n"
    others = [(_spelt(parts), what) for parts, what in _by_meaning(OTHER_KINDS)]
    yield _table(("a LoRA's tensor has in its name (a regular expression)", "so it is refused as"), others)
    yield "\n".join(f"Left out of it, and said: {what} (`{start}…`)." for start, what in LEFT_OUT.items()) + "\n"


def _read_by_some() -> dict[str, tuple[object, ...]]:
    return {name: values for limits in REFUSED_BY.values() for name, values in limits.items()}


def _diffusers_schedulers() -> list[str]:
    import diffusers

    return [name for name in dir(diffusers) if name.endswith("Scheduler")]


def _by_meaning(names: Mapping[str, str]) -> list[tuple[list[str], str]]:
    """What names mean, each meaning once, with all the names that mean it."""
    found: dict[str, list[str]] = {}
    for name, what in names.items():
        found.setdefault(what, []).append(name)
    return [(parts, what) for what, parts in found.items()]


def _spelt(names: Iterable[str]) -> str:
    return ", ".join(f"`{name.replace('|', chr(92) + '|')}`" for name in names)


def _listed(names: Iterable[str | None]) -> str:
    return ", ".join(f"`{name}`" for name in names if name)


def _values(values: Sequence[object]) -> str:
    """JSON's words for the values of a setting; null is also a setting that is left out."""
    words = {None: "null", True: "true", False: "false", -math.inf: "-Infinity"}
    named = [words[value] if value in words and not isinstance(value, str) else f"{value}" for value in values]
    return ", ".join(f"`{word}`" for word in dict.fromkeys(named))


def _table(head: Row, rows: Iterable[Row]) -> str:
    body = "\n".join(f"| {' | '.join(line)} |" for line in (head, *rows))
    first, _, rest = body.partition("\n")
    return f"{first}\n|{'---|' * len(head)}\n{rest}\n"
