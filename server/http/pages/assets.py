"""What pages load, read once: scripts, style sheets and icons of several folders, under one address."""

from __future__ import annotations

import gzip
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from pathlib import Path

from starlette.requests import Request
from starlette.responses import Response

MEDIA_TYPES = {
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".png": "image/png",
    ".svg": "image/svg+xml",
}
SAFETY = {
    # Nothing from elsewhere and nothing inline; previews and uploads are blob: and data: images.
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; "
    "connect-src 'self'; form-action 'none'; frame-ancestors 'none'; base-uri 'none'",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


@dataclass(frozen=True)
class Asset:
    """A file that browsers may have."""

    content: bytes
    media_type: str

    @cached_property
    def zipped(self) -> bytes:
        """The content as gzip."""
        return gzip.compress(self.content, mtime=0)

    @cached_property
    def etag(self) -> str:
        """Of the content; it is the same on every server that has it. Weak, as it is the same zipped (RFC 9110, 8.8.1)."""
        return f'W/"{sha256(self.content).hexdigest()[:32]}"'

    def answer(self, request: Request) -> Response:
        """The file, zipped where the browser takes that; 304 where it has it already: it asks each time (RFC 9111, 5.2.2.4)."""
        headers = SAFETY | {"Cache-Control": "no-cache", "ETag": self.etag, "Vary": "Accept-Encoding"}
        known = request.headers.get("if-none-match", "")
        if self.etag in [tag.strip() for tag in known.split(",")]:
            return Response(status_code=304, headers=headers)
        if _takes_gzip(request.headers.get("accept-encoding", "")) and len(self.zipped) < len(self.content):
            return Response(self.zipped, media_type=self.media_type, headers=headers | {"Content-Encoding": "gzip"})
        return Response(self.content, media_type=self.media_type, headers=headers)


def _takes_gzip(accepted: str) -> bool:
    """Whether a browser that accepts these codings takes gzip (RFC 9110, 12.5.3)."""
    weights = dict[str, str]()
    for coding in accepted.lower().split(","):
        name, _, weight = coding.partition(";")
        weights[name.strip()] = weight.strip()
    return not re.fullmatch(r"q=0(\.0*)?", weights.get("gzip", weights.get("*", "q=0")))


def asset(path: Path) -> Asset:
    """A file. Raises `KeyError` where it is of a kind that pages do not load."""
    return Asset(path.read_bytes(), MEDIA_TYPES[path.suffix])


def assets_in(*folders: Path) -> Mapping[str, Asset]:
    """Those of some folders by their path in them, with slashes. A path that two folders have is of the first."""
    found: dict[str, Asset] = {}
    for folder in folders:
        for path in sorted(folder.rglob("*")):
            if path.suffix in MEDIA_TYPES and path.is_file():
                found.setdefault(path.relative_to(folder).as_posix(), asset(path))
    return found
