"""Chromium, as visitors of the pages have it: what is installed, driven by Playwright. Nothing is downloaded."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from places import ROOT
from playwright.sync_api import Browser, Page, Request, expect, sync_playwright

PATIENCE = 60_000  # milliseconds that a page may take, on a machine with other work
NAMES = ("chromium", "chromium-browser", "google-chrome")
QUIET = (
    "--no-sandbox",  # which a container gives nobody, and nothing of others is loaded
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
WIDE, NARROW = {"width": 1280, "height": 900}, {"width": 390, "height": 844}
AXE = ROOT / "node_modules" / "axe-core" / "axe.min.js"


def missing(what: str, how: str) -> None:
    """Skip the test that asks, with how to have what is missing; in CI it fails."""
    message = f"needs {what}: {how}"
    if os.environ.get("CI"):
        pytest.fail(message)
    pytest.skip(message)


@contextmanager
def chromium_running() -> Iterator[Browser]:
    """A browser. While it is there, its thread has a running event loop: no `asyncio.run` in it."""
    path = next(filter(None, map(shutil.which, NAMES)), None)
    if path is None:
        missing("chromium", "apt install chromium")
    expect.set_options(timeout=PATIENCE)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=list(QUIET))
        yield browser
        browser.close()


@contextmanager
def visiting(browser: Browser, address: str, expected: Collection[object] = (), **options: Any) -> Iterator[Page]:
    """A visitor with nothing stored. At the end: nothing was loaded from elsewhere, and the console has no error.

    expected: statuses of answers that the console may name, beside 200 and the like, or "lost" connections. options: of
    Playwright's `new_context`.
    """
    with browser.new_context(**options) as context:
        page, faults = context.new_page(), list[str]()

        def asked(request: Request) -> None:
            if not request.url.startswith((f"{address}/", "data:", "blob:")):
                faults.append(f"asked elsewhere: {request.url}")

        def said(kind: str, text: str) -> None:
            announced = [f"the server responded with a status of {status} " for status in expected]
            announced += ["net::ERR_"] * ("lost" in expected)
            if kind in ("error", "warning") and not any(status in text for status in announced):
                faults.append(f"{kind}: {text}")

        page.on("request", asked)
        page.on("console", lambda message: said(message.type, message.text))
        page.on("pageerror", lambda error: said("error", str(error)))
        page.set_default_timeout(PATIENCE)
        yield page
        page.unroute_all(behavior="ignoreErrors")  # the page may be asking when it is closed, which would fail the next test
    assert faults == []


def violations(page: Page) -> list[str]:
    """What axe finds against the page as it is: rule and place, in words."""
    if not AXE.is_file():
        missing("axe-core", "npm ci")
    page.evaluate(f"() => {{ {AXE.read_text()} }}")
    found = json.loads(page.evaluate("async () => JSON.stringify((await axe.run()).violations)"))
    return [f"{rule['id']}: {node['html'][:200]}: {node['failureSummary']}" for rule in found for node in rule["nodes"]]


def violations_everywhere(page: Page) -> list[str]:
    """What axe finds on a wide screen in light colours, and on a phone in dark ones; the page is left as it was."""
    wide, found = page.viewport_size, list[str]()
    for scheme, window in (("light", wide), ("dark", NARROW)):
        page.emulate_media(color_scheme=scheme)
        page.set_viewport_size(window)
        found += violations(page)
    page.emulate_media(color_scheme="light")
    page.set_viewport_size(wide)
    return found


def overflow(page: Page) -> int:
    """By how many pixels the page is wider than its window."""
    return page.evaluate("() => document.documentElement.scrollWidth - document.documentElement.clientWidth")
