"""The shape of the repository that other tools and people rely on."""

import subprocess
from pathlib import Path

ROOT = Path(__file__).parent.parent


def tracked() -> list[Path]:
    done = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True)
    return [Path(line) for line in done.stdout.splitlines()]


def test_the_top_level_holds_what_the_project_promises() -> None:
    for name in ("server", "registry", "search_jobs", "tests", "loadtests"):
        assert (ROOT / name).is_dir()
    for name in ("bentofile.yaml", "Dockerfile", "pyproject.toml", "requirements.lock", "NOTICE", "LICENSE"):
        assert (ROOT / name).is_file()


def test_no_init_file_below_tests_hides_a_real_package() -> None:
    assert not [path for path in tracked() if path.parts[0] == "tests" and path.name == "__init__.py"]


def test_the_bundled_model_stays_small() -> None:
    files = [ROOT / path for path in tracked() if path.parts[:2] == ("models", "emoji64")]
    assert 0 < sum(file.stat().st_size for file in files) < 40 * 2**20


def test_lock_and_project_agree_on_every_direct_dependency() -> None:
    import re
    import tomllib

    from packaging.requirements import Requirement

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    locked = dict(re.findall(r"^([a-z0-9._-]+)==(\S+)", (ROOT / "requirements.lock").read_text(), re.MULTILINE))
    developing = dict(re.findall(r"^([a-z0-9._-]+)==(\S+)", (ROOT / "requirements-dev.lock").read_text(), re.MULTILINE))
    for text in project["dependencies"]:
        wanted = Requirement(text)
        assert wanted.specifier.contains(locked[wanted.name]), text
    for text in (*project["optional-dependencies"]["dev"], *project["optional-dependencies"]["load"]):
        wanted = Requirement(text)
        assert wanted.specifier.contains(developing[wanted.name]), text
    assert locked.items() <= developing.items()
