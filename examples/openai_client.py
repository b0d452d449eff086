"""Against `make serve`, with `pip install openai`: an image within a deadline, and one with previews on the way."""

from __future__ import annotations

import argparse
import base64
import os
import sys
from pathlib import Path

import openai


def main() -> None:
    """Write the images to `--out`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--address", default="http://127.0.0.1:3000")
    parser.add_argument("--prompt", default="red heart")
    parser.add_argument("--out", type=Path, default=Path())
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    client = openai.OpenAI(base_url=f"{arguments.address}/v1", api_key=os.environ.get("FLEXIFFUSION_API_KEY", "none"))

    made = client.images.generate(prompt=arguments.prompt, n=2, extra_body={"tier": "auto", "deadline_ms": 5000, "seed": 7})
    about = made.model_extra or {}
    for i, image in enumerate(made.data or []):
        save(arguments.out / f"image-{i}.png", image.b64_json)
    print(f"tier {about['tier']}, {about['macs'] / 1e9:.2f} GMACs, {about['relative_cost']:.3f} of the teacher's")

    for event in client.images.generate(prompt=arguments.prompt, quality="max", stream=True, partial_images=3):
        if event.type == "image_generation.partial_image":
            save(arguments.out / f"preview-{event.partial_image_index}.png", event.b64_json)
        else:
            save(arguments.out / "streamed.png", event.b64_json)


def save(path: Path, b64: str | None) -> None:
    """Write a PNG and say so."""
    path.write_bytes(base64.b64decode(b64 or ""))
    print(path)


if __name__ == "__main__":
    try:
        main()
    except openai.OpenAIError as error:
        sys.exit(f"error: {error}")
