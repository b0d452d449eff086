"""make search: a longer search than the demo's, into .flexi/runs/MODEL, published to .flexi/registry."""

from __future__ import annotations

import subprocess
import sys

from models.bundled import BUNDLED, DEFAULT
from registry.commands.command_line import argument_parser, run_program


def main() -> int:
    """Search and publish as a user would."""
    parser = argument_parser(__doc__)
    parser.add_argument("--model", choices=BUNDLED, default=DEFAULT)
    model = BUNDLED[parser.parse_args().model]
    run = f".flexi/runs/{model.name}"
    searching = ["run", *model.search_options(), "--out", run, "--heldout", 64, "--generations", 10]
    for words in (searching, ["publish", run]):
        if code := subprocess.run([sys.executable, "-m", "search_jobs", *map(str, words)], check=False).returncode:
            return code
    return 0


if __name__ == "__main__":
    run_program(main)
