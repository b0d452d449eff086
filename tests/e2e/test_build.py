"""`bentoml build` packs everything the service imports and serves."""

import os
import subprocess
import sys
from pathlib import Path

from places import ROOT


def test_a_bento_holds_the_model_and_starts_from_its_own_files(tmp_path: Path) -> None:
    environment = {**os.environ, "BENTOML_HOME": str(tmp_path), "BENTOML_DO_NOT_TRACK": "true"}
    build = [sys.executable, "-m", "bentoml", "build", "--output", "tag"]
    done = subprocess.run(build, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    name, tag = done.stdout.strip().splitlines()[-1].removeprefix("__tag__:").split(":")
    packed = tmp_path / "bentos" / name / tag / "src"
    assert (packed / "models" / "emoji64" / "unet" / "diffusion_pytorch_model.safetensors").is_file()
    script = "import server.service, server; print(server.__file__)"
    environment.pop("PYTHONPATH", None)
    run = subprocess.run(
        [sys.executable, "-c", script], cwd=packed, env=environment, capture_output=True, text=True, check=True
    )
    assert Path(run.stdout.strip().splitlines()[-1]).is_relative_to(packed)
