"""Scripts of a page in the page itself. Browsers load no module from a file beside a page that is a file (`file://`), but
they do import `data:` URLs: an import map has each module under a name, and modules import each other by these names."""

from __future__ import annotations

import posixpath
import re
from base64 import b64encode

from registry.site import ASSETS

PREFIX = "flexi/"
_IMPORT = re.compile(r"""\bfrom\s*"(\.{1,2}/[^"]+\.js)\"""")


def import_map(entry: str) -> dict[str, str]:
    """`data:` URL by name of a module below `ASSETS` and of all that it imports, directly or not."""
    urls, waiting = dict[str, str](), [entry]
    while waiting:
        path = waiting.pop()
        if name_of(path) not in urls:
            text = (ASSETS / path).read_text(encoding="utf-8")
            imported = [_resolved(path, relative) for relative in _IMPORT.findall(text)]
            named = _IMPORT.sub(lambda found: f'from "{name_of(_resolved(path, found[1]))}"', text)  # noqa: B023
            urls[name_of(path)] = f"data:text/javascript;base64,{b64encode(named.encode()).decode()}"
            waiting += imported
    return urls


def name_of(path: str) -> str:
    """What a module is imported by, which is no relative address."""
    return f"{PREFIX}{path}"


def _resolved(path: str, relative: str) -> str:
    return posixpath.normpath(posixpath.join(posixpath.dirname(path), relative))
