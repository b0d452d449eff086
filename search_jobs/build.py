"""What a process computes with: its code and the packages that figures depend on. Workers must have the client's."""

from __future__ import annotations

import hashlib
import platform
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path

from registry.errors import Unsupported

ROOT = Path(__file__).resolve().parents[1]
CODE = ("registry", "engine", "evaluation", "search_jobs")
PACKAGES = ("torch", "diffusers", "transformers", "numpy", "distributed")


@lru_cache(maxsize=1)
def build() -> str:
    """Such as "Python 3.11, torch 2.8.0, …, code 0123456789ab", of this process."""
    code = hashlib.sha256()
    for path in sorted(path for package in CODE for path in (ROOT / package).rglob("*.py")):
        code.update(f"{path.relative_to(ROOT)}\0".encode() + path.read_bytes())
    python = ".".join(platform.python_version_tuple()[:2])
    packages = [f"{name} {version(name).partition('+')[0]}" for name in PACKAGES]  # without the device that it is built for
    return ", ".join([f"Python {python}", *packages, f"code {code.hexdigest()[:12]}"])


def refuse_other_build(wanted: str) -> None:
    """Raise `Unsupported` where this process does not run what `wanted` says: it would measure something else."""
    differences = [
        f"{there} and not {here}" for here, there in zip(wanted.split(", "), build().split(", "), strict=True) if here != there
    ]
    if differences:
        raise Unsupported(f"it runs {', '.join(differences)}: start it from the same checkout and environment")
