"""A registry as a page that is a file: the console's views with their documents in it, for those who keep the server closed.

The page needs nothing beside itself, so it is replaced in one go: whoever reads it meanwhile has the old one or the new one.
Search reports lie beside it under names of their contents.
"""

from __future__ import annotations

import json
import re
from base64 import b64encode
from collections.abc import Iterator, Mapping
from datetime import datetime
from hashlib import sha256
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from pydantic import BaseModel

from registry.catalog import Catalog
from registry.errors import FlexiError, InvalidInput, StoreUnavailable
from registry.files import replace_file
from registry.signing import TrustedKeys
from registry.site import ASSETS
from registry.site.modules import import_map, name_of
from registry.site.reader import RegistryReader

GENERATOR = "flexiffusion-serve registry site"
PAGE, REPORTS, REPORT = "index.html", "reports", "report.html"
ENTRY = "console/site.js"
STYLES = ("base.css", "vendor/uplot.css", "console/console.css")
TEMPLATES = Environment(
    loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined, keep_trailing_newline=True
)
_KEPT_NAME = re.compile(r"[0-9a-f]{16}\.html")


class Site:
    """What a site holds: documents of models, and search reports."""

    def __init__(self, registry: str, time: datetime) -> None:
        self._about = {"registry": registry, "time": time.isoformat(timespec="seconds")}
        self._models = dict[str, dict[str, Any]]()
        self._reports = dict[str, bytes]()  # by file name
        self._titles = dict[str, str]()  # of reports, by file name

    def add_model(self, catalog: Catalog, last: int, trusted: TrustedKeys | None = None) -> None:
        """A model's newest versions, tiers and experiments, and the reports beside its schedules. Raises `StoreUnavailable`."""
        reader = RegistryReader(catalog, trusted)
        documents = dict(_documents(reader, last))
        self._models[catalog.model] = {path: document.model_dump(mode="json") for path, document in documents.items()}
        for path, document in self._models[catalog.model].items():
            if path.startswith("schedules/") and REPORT in document.get("artifacts", ()):
                data = catalog.store.get(f"{catalog.model}/artifacts/{document['digest']}/{REPORT}").data
                self._add_report(data, f"search report of {catalog.model}")

    def add_run(self, folder: Path) -> None:
        """The report of a finished search's folder. Raises `InvalidInput`."""
        try:
            data = (folder / REPORT).read_bytes()
        except OSError as error:
            message = f"cannot read {folder / REPORT}: {error.strerror}; python -m search_jobs report FOLDER makes it"
            raise InvalidInput(message, param="run") from error
        self._add_report(data, f"search run {'/'.join(folder.resolve().parts[-2:])}")

    def write(self, out: Path) -> Path:
        """Write the page to `out`/index.html, in the place of an older one. Raises `InvalidInput` and `StoreUnavailable`.

        A folder that holds something else is left alone.
        """
        refuse_other_folder(out)
        try:
            (out / REPORTS).mkdir(parents=True, exist_ok=True)
            for name, data in self._reports.items():
                replace_file(out / REPORTS / name, data)
            replace_file(out / PAGE, self._page().encode())
            for path in (out / REPORTS).iterdir():
                if _KEPT_NAME.fullmatch(path.name) and path.name not in self._reports:
                    path.unlink()
        except OSError as error:
            raise StoreUnavailable(f"cannot write {error.filename or out}: {error.strerror}", param="out") from error
        return out / PAGE

    def _add_report(self, data: bytes, title: str) -> None:
        name = f"{sha256(data).hexdigest()[:16]}.html"
        self._reports[name] = data
        self._titles.setdefault(name, title)

    def _page(self) -> str:
        reports = [{"href": f"{REPORTS}/{name}", "title": title} for name, title in self._titles.items()]
        documents = self._about | {"models": self._models, "reports": reports}
        style = "\n".join((ASSETS / name).read_text(encoding="utf-8") for name in STYLES)
        return TEMPLATES.get_template("site.html.j2").render(
            generator=GENERATOR,
            icon=f"data:image/svg+xml;base64,{b64encode((ASSETS / 'icon.svg').read_bytes()).decode()}",
            style=style,
            imports=json.dumps({"imports": import_map(ENTRY)}),
            documents=in_script(documents),
            entry=name_of(ENTRY),
        )


def refuse_other_folder(out: Path) -> None:
    """Raise `InvalidInput` unless `out` is free, empty or a site: nothing of others is overwritten or removed."""
    if not out.exists():
        return
    if not out.is_dir():
        raise InvalidInput(f"{out} is no folder", param="out")
    try:
        page = out / PAGE
        is_site = page.is_file() and f'content="{GENERATOR}"' in page.read_text(encoding="utf-8", errors="replace")[:2000]
        if not is_site and any(entry for entry in out.iterdir() if entry.name != REPORTS):
            raise InvalidInput(f"{out} holds something else than a site: name another folder", param="out")
    except OSError as error:
        raise InvalidInput(f"cannot read {out}: {error.strerror}", param="out") from error


def in_script(documents: Mapping[str, Any]) -> str:
    """JSON for the inside of a script element, which `</` would end, and `<!--` confuse: other people wrote the texts in it."""
    return json.dumps(documents, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")


def _documents(reader: RegistryReader, last: int) -> Iterator[tuple[str, BaseModel]]:
    """What a server would answer, by the paths that the console asks for. Schedules are compared with those of the tiers."""
    front, tiers, experiments = reader.front(last), reader.tiers(), reader.experiments()
    yield from (("front", front), ("tiers", tiers), ("experiments", experiments))
    of_tiers = {tier.digest for tier in tiers.tiers if tier.digest}
    of_arms = {arm.digest for one in experiments.experiments for arm in one.declaration.arms}
    of_candidates = {tier.candidate.candidate.digest for tier in tiers.tiers if tier.candidate}
    shown = sorted({version.digest for version in front.versions} | of_tiers | of_arms | of_candidates)
    readable = list[str]()
    for digest in shown:
        try:
            yield f"schedules/{digest}", reader.schedule(digest)
        except StoreUnavailable:
            raise
        except FlexiError:
            continue  # it is gone or damaged, which the version's line says
        readable.append(digest)
    for a in sorted(of_tiers.intersection(readable)):
        for b in readable:
            if a != b:
                yield f"schedules/{a}/difference?to={b}", reader.difference(a, b)
