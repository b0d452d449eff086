"""make serve: the service on 127.0.0.1 with what .flexi/registry holds, and a curl line that works."""

from __future__ import annotations

import signal
from contextlib import suppress
from pathlib import Path

import httpx

from examples.launch import FOR_SMALL_MODELS, serving
from models.bundled import BUNDLED, DEFAULT
from registry.commands.command_line import argument_parser, run_program


def main() -> None:
    """Serve until Ctrl-C."""
    parser = argument_parser(__doc__)
    parser.add_argument("--port", type=int, default=3000)
    parser.add_argument("--model", choices=BUNDLED, default=DEFAULT)
    parser.add_argument("--models", help="several bundled models with commas between, or all; the first is the default")
    arguments = parser.parse_args()
    names = list(BUNDLED) if arguments.models == "all" else (arguments.models or arguments.model).split(",")
    if unknown := sorted({*names} - {*BUNDLED}):
        parser.error(f"--models: {', '.join(unknown)} is no bundled model: choose from {', '.join(BUNDLED)}")
    port, model = arguments.port, BUNDLED[names[0]]
    folders = {"FLEXI_MODELS": ",".join(str(BUNDLED[name].folder) for name in names)}
    settings = folders if len(names) > 1 else {"FLEXI_MODEL": str(model.folder)}
    settings |= FOR_SMALL_MODELS
    prompt = model.requests()[0]["prompt"]
    log = Path(".flexi/serve.log")
    print(f"Starting the service on port {port} (log: {log}) …", flush=True)
    with serving(settings, log, port=port) as address:
        tiers = httpx.get(f"{address}/v1/tiers").raise_for_status().json()
        offered = [tier["tier"] for tier in tiers["tiers"]]
        tier = "balanced" if "balanced" in offered else offered[0]
        for warning in tiers["warnings"]:
            print(f"Note: {warning['message']}.")
        if any(warning["code"] == "no_tiers" for warning in tiers["warnings"]):
            print("`make demo` or `make search` publishes some.")
        body = f'{{"prompt": "{prompt}", "tier": "{tier}", "seed": 7}}'
        others = f"; `model` chooses among {', '.join(names)}" * (len(names) > 1)
        print(f"Ready; tiers: {', '.join(offered)}{others}. Try:\n")
        print(
            f"curl -s {address}/generate -H 'content-type: application/json' -d '{body}' \\\n"
            "  | python3 -c 'import base64, json, sys; a = json.load(sys.stdin); "
            'open("image.png", "wb").write(base64.b64decode(a.pop("images")[0])); print(json.dumps(a, indent=1))\'\n'
        )
        print(f"Or look: {address}/ is a playground.\nCtrl-C ends it.", flush=True)
        with suppress(KeyboardInterrupt):
            signal.pause()


if __name__ == "__main__":
    run_program(main)
