"""A real browser for tests: the system's Chromium, driven by playwright."""

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Error, Locator, Page, expect, sync_playwright

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


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Return a browser for the tests of a file."""
    with opened() as browser:
        yield browser


@pytest.fixture
def new_page(browser) -> Iterator[Callable[[], Page]]:
    """Return what opens a page in a window of its own, which shares nothing with others.

    The windows are closed after the test: a chat page that stays open computes on and on.
    """
    with ExitStack() as windows:

        def open_window() -> Page:
            window = browser.new_context(viewport={"width": 1100, "height": 820})
            windows.callback(window.close)
            page = window.new_page()
            page.set_default_timeout(30_000)
            return page

        yield open_window


SPLIT_WORDS = """place => {
  const texts = document.createTreeWalker(place, NodeFilter.SHOW_TEXT);
  const words = [];
  for (let text = texts.nextNode(); text; text = texts.nextNode()) {
    for (const word of text.data.matchAll(/\\S+/g)) {
      const range = document.createRange();
      range.setStart(text, word.index);
      range.setEnd(text, word.index + word[0].length);
      if (range.getClientRects().length > 1) words.push(word[0]);
    }
  }
  return words;
}"""


def split_words(place: Locator) -> list[str]:
    """Return the words of a place in a page that begin on one line and end on another."""
    return place.evaluate(SPLIT_WORDS)


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
