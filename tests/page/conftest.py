"""One browser for all tests of the page, and a page that notes what it should not do."""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from urllib.parse import urlsplit

import pytest
from curvserve_client import Client, RemoteSession
from playwright.sync_api import Browser, Page

from tests.page.browser import NoBrowser, running_browser
from tests.server.process import PATIENCE, Server, serving

LOOPBACK = {"127.0.0.1", "localhost"}


@dataclass
class Watched:
    """What a page did.

    Attributes:
        page: the page.
        said: what it wrote to its console as a warning or an error, and what it threw.
        requested: the addresses that it asked for.
        headers: the headers that it asked for the stream with, for each time.
        expected: a pattern of console lines that a test brings about.
    """

    page: Page
    said: list[str] = field(default_factory=list)
    requested: list[str] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    expected: str = "$^"

    def reading(self, panel: str) -> str:
        """Return what a panel says in words."""
        return self.page.inner_text(f"#{panel}-reading")

    def until(self, condition: str, argument: object = None) -> None:
        """Wait for a JavaScript function of an argument to be true."""
        self.page.wait_for_function(condition, arg=argument)


Opened = Callable[..., Watched]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """The browser; of this file alone, as Playwright keeps an event loop running meanwhile."""
    try:
        with running_browser() as running:
            yield running
    except NoBrowser as error:
        pytest.fail(str(error), pytrace=False)


@pytest.fixture
def opened(browser: Browser) -> Iterator[Opened]:
    """Opens pages, each in a profile of its own, and holds them to what every page has to keep."""
    pages: list[Watched] = []

    def open_page(address: str, width: int = 1280, height: int = 900, **options: object) -> Watched:
        context = browser.new_context(viewport={"width": width, "height": height}, **options)
        context.set_default_timeout(1000 * PATIENCE)
        watched = Watched(context.new_page())
        pages.append(watched)
        page = watched.page
        context.on("request", lambda request: watched.requested.append(request.url))
        context.on(
            "request",
            lambda request: (
                watched.headers.append(request.headers) if "/v1/events" in request.url else None
            ),
        )
        page.on(
            "console",
            lambda message: (
                watched.said.append(message.text) if message.type in ("warning", "error") else None
            ),
        )
        page.on("pageerror", lambda error: watched.said.append(str(error)))
        page.goto(address)
        return watched

    yield open_page
    for watched in pages:
        watched.page.context.close()
        strange = [line for line in watched.said if not re.search(watched.expected, line)]
        assert strange == []
        hosts = {urlsplit(url).hostname for url in watched.requested if not url.startswith("data:")}
        assert hosts <= LOOPBACK


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """A server for all of them."""
    with serving("--model", "mnist_cnn", "--log-level", "error") as running:
        yield running


@pytest.fixture
def session(server: Server) -> Iterator[RemoteSession]:
    """A fresh session on it, ended after the test."""
    with Client(server.address) as client, client.create_session("mnist_cnn") as made:
        yield made
        client.delete_session(made.name)
