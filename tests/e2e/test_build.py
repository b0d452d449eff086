"""`bentoml build` packs everything the service imports and serves, and the bundle serves without the repository."""

import os
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
from places import ROOT

from examples.launch import started
from server.http.pages.assets import MEDIA_TYPES


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The source folder of a bundle that was just built."""
    home = tmp_path_factory.mktemp("bentoml")
    environment = {**os.environ, "BENTOML_HOME": str(home), "BENTOML_DO_NOT_TRACK": "true"}
    build = [sys.executable, "-m", "bentoml", "build", "--output", "tag"]
    done = subprocess.run(build, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    name, tag = done.stdout.strip().splitlines()[-1].removeprefix("__tag__:").split(":")
    return home / "bentos" / name / tag / "src"


def test_it_holds_the_model_and_every_module_of_what_serves(packed: Path) -> None:
    assert (packed / "models" / "emoji64" / "unet" / "diffusion_pytorch_model.safetensors").is_file()
    for package in ("server", "registry", "engine", "evaluation"):
        ours, theirs = ({path.relative_to(root) for path in (root / package).rglob("*.py")} for root in (ROOT, packed))
        assert ours == theirs
    kept = {path.relative_to(packed).as_posix() for path in packed.rglob("*")}
    for folder in ("registry/site/assets", "server/http/pages"):
        assert {
            path.relative_to(ROOT).as_posix() for path in (ROOT / folder).rglob("*.*") if path.suffix in MEDIA_TYPES
        } <= kept


def test_it_serves_from_its_own_files(packed: Path, tmp_path: Path) -> None:
    registry = str(tmp_path / "registry")
    settings = {"FLEXI_REGISTRY": registry, "FLEXI_STATE": str(tmp_path / "state"), "FLEXI_TEACHER_STEPS": "4"}
    with started(settings, tmp_path / "server.log", root=packed) as service:
        answer = httpx.post(f"{service.address}/generate", json={"prompt": "red heart", "tier": "reference"}, timeout=120)
        assert answer.json()["steps"] == {"full": 4, "partial": 0, "null": 0}
        environment = Path(f"/proc/{service.supervisor.pid}/cwd").resolve()
    assert environment == packed.resolve()
