"""Pages about a registry: what those of the server and of a static export have in common."""

from pathlib import Path

ASSETS = Path(__file__).parent / "assets"
"""Scripts, style sheets and libraries, served and exported under `assets/`; imports in them are relative."""
