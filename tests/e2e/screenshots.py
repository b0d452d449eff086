"""make screenshots: the pages as they are, into docs/images, of the tiers that `make demo` published."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from browser import NARROW, WIDE, chromium_running, visiting
from PIL import Image
from places import ROOT
from playwright.sync_api import Browser, Page

from examples.launch import serving
from registry.commands.command_line import argument_parser, run_program
from registry.stores.address import DEFAULT_ADDRESS

IMAGES = ROOT / "docs" / "images"
QUALITY = 86  # per cent: history keeps each byte of these files


def main() -> None:
    """Serve, visit, write."""
    parser = argument_parser(__doc__)
    parser.add_argument("--registry", default=DEFAULT_ADDRESS)
    registry = parser.parse_args().registry
    IMAGES.mkdir(exist_ok=True)
    with TemporaryDirectory() as folder, chromium_running() as browser:
        settings = {
            "FLEXI_MODEL": str(ROOT / "models" / "emoji64"),
            "FLEXI_REGISTRY": registry,
            "FLEXI_STATE": f"{folder}/state",
        }
        with serving(settings, Path(folder) / "server.log") as address:
            playground(browser, address)
            console(browser, address)


def playground(browser: Browser, address: str) -> None:
    """Its three views: before anything is drawn, one image, all tiers."""
    with opened(browser, address, "light") as page:
        compare(page)
        form = page.locator("form").bounding_box()
        write(page, "playground-light", int(form["y"] + form["height"] + 20))
    with opened(browser, address, "dark") as page:
        page.get_by_label("Prompt", exact=True).fill("hamburger")
        page.get_by_role("button", name="Generate with balanced").click()
        page.get_by_role("link", name="Download").wait_for()
        write(page, "playground-dark", 860)
    with opened(browser, address, "light", narrow=True) as page:
        compare(page)
        page.locator(".compared").evaluate("tiles => scrollTo(0, tiles.offsetTop - 48)")
        write(page, "playground-narrow")


def console(browser: Browser, address: str) -> None:
    """What it shows of the registry, and of the requests that the playground has made."""
    for name, scheme, narrow in (("console-light", "light", False), ("console-dark", "dark", True)):
        with visiting(browser, address, viewport=NARROW if narrow else WIDE, color_scheme=scheme) as page:
            page.goto(f"{address}/console")
            page.locator(".plot canvas").wait_for()
            page.get_by_role("region", name="now").last.wait_for()
            page.wait_for_timeout(20_000)  # a line over time takes some
            if narrow:
                page.get_by_role("heading", name="Front").evaluate("front => scrollTo(0, front.offsetTop - 24)")
            write(page, name, None if narrow else 1060)


def compare(page: Page) -> None:
    """Wait until all tiers have drawn, and their distances are known."""
    page.get_by_role("button", name="Compare all tiers").click()
    page.get_by_role("heading", name="Look closer").wait_for(timeout=120_000)
    page.get_by_text(" dB").nth(4).wait_for()
    page.mouse.move(0, 0)


@contextmanager
def opened(browser: Browser, address: str, scheme: str, narrow: bool = False) -> Iterator[Page]:
    """A visitor whose page has all that it asks for at first."""
    with visiting(browser, address, viewport=NARROW if narrow else WIDE, color_scheme=scheme) as page:
        page.goto(address)
        page.locator("label.tier .strip i").first.wait_for()
        yield page


def write(page: Page, name: str, height: int | None = None) -> None:
    """The window, or the page's first so many pixels."""
    if height is not None:
        page.set_viewport_size({**WIDE, "height": height})
    shot = Image.open(io.BytesIO(page.screenshot()))
    shot.convert("RGB").save(IMAGES / f"{name}.webp", quality=QUALITY, method=6)


if __name__ == "__main__":
    run_program(main)
