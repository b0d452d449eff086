"""The libraries of others are what they say they are."""

import json
import re
from hashlib import sha256

import pytest
from places import ROOT

from registry.site import ASSETS

VENDOR = ASSETS / "vendor"
README = (VENDOR / "README.md").read_text()
LOCK = json.loads((ROOT / "package-lock.json").read_text())["packages"]


def test_each_file_has_the_checksum_that_is_written_beside_it() -> None:
    said = dict(re.findall(r"^\| `(\S+)` .*`([0-9a-f]{64})` \|$", README, re.MULTILINE))
    files = [path for path in VENDOR.iterdir() if not path.name.endswith((".md", ".d.ts"))]
    assert said == {path.name: sha256(path.read_bytes()).hexdigest() for path in files}


def test_the_versions_are_those_that_the_scripts_are_checked_against() -> None:
    versions = set(re.findall(r"^\| `\S+` \| (\S+) ([0-9.]+),", README, re.MULTILINE))
    assert versions == {(name, LOCK[f"node_modules/{name}"]["version"]) for name, _ in versions}
    assert len(versions) == 3


@pytest.mark.parametrize("name", ["preact", "htm", "uplot"])
def test_each_library_has_its_licence_here(name: str) -> None:
    (licence,) = re.findall(rf"^## {name}\n(.+?)(?=^## (?:preact|htm|uplot)$|\Z)", README, re.MULTILINE | re.DOTALL)
    assert "Apache License" in licence or "MIT License" in licence


def test_the_lock_file_names_no_host() -> None:
    assert "://" not in re.sub(r'"url": "[^"]*"', "", (ROOT / "package-lock.json").read_text())
