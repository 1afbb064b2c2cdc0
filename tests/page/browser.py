"""A real browser for the page's tests: the system's Chromium, without a window."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager

from playwright.sync_api import Browser, sync_playwright

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")

ARGUMENTS = [
    "--no-sandbox",  # which a container's root cannot have
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-quic",
    "--no-first-run",
]


class NoBrowser(Exception):
    """There is no browser; the text says what to install."""


def browser_path() -> str:
    """Return where the browser is.

    Raises:
        NoBrowser: none is installed.
    """
    for name in NAMES:
        if path := shutil.which(name):
            return path
    raise NoBrowser(
        "the page is tested in Chromium, and there is none: `apt-get install chromium`, "
        "or install Google Chrome, then run this again"
    )


@contextmanager
def running_browser() -> Iterator[Browser]:
    """Run a browser for a block."""
    path = browser_path()
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=ARGUMENTS)
        try:
            yield browser
        finally:
            browser.close()
