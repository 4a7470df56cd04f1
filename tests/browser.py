"""A real browser for tests: the system's Chromium, driven by playwright."""

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Error, Page, expect, sync_playwright

expect.set_options(timeout=20_000)  # on a busy machine
NAMES = ("chromium", "chromium-browser", "google-chrome")
# No sandbox: CI runs as root in a container, where Chromium has none. The rest keeps it from
# calling home and from needing a graphics card.
ARGUMENTS = [
    *("--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync", "--disable-quic"),
]


@contextmanager
def opened() -> Iterator[Browser]:
    """Start the browser; without one, fail in CI and skip elsewhere."""
    path = next(filter(None, map(shutil.which, NAMES)), None)
    # On macOS and Windows, playwright knows where Chrome is.
    location = {"executable_path": path} if path else {"channel": "chrome"}
    with sync_playwright() as playwright:
        try:
            browser = playwright.chromium.launch(args=ARGUMENTS, **location)
        except Error:
            report = pytest.fail if os.environ.get("CI") == "true" else pytest.skip
            report("there is no Chromium; install the system's package `chromium`")
        yield browser
        browser.close()


def new_page(browser: Browser, width: int = 1100, height: int = 820) -> Page:
    """Return a page in a window of its own, which shares nothing with others."""
    page = browser.new_context(viewport={"width": width, "height": height}).new_page()
    page.set_default_timeout(30_000)
    return page


IMAGES = Path(__file__).parent.parent / "notebooks" / "images"
MOST_BYTES = 200_000  # of a picture in the README


@pytest.fixture
def screenshot(request, tmp_path) -> Callable[[Page, str], None]:
    """Return what takes a picture of a page: for the README with `--screenshots`."""

    def take(page: Page, name: str) -> None:
        folder = IMAGES if request.config.getoption("screenshots") else tmp_path
        path = folder / f"{name}.png"
        page.screenshot(path=path)
        assert path.stat().st_size < MOST_BYTES

    return take
