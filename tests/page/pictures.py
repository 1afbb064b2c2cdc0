"""Pictures of the page while a real model trains: python -m tests.page.pictures FOLDER."""

import itertools
import sys
from contextlib import suppress
from pathlib import Path

import torch
from curvserve_client import Client, RemoteDiagGGNOptimizer, RemoteSession
from curvserve_client.errors import NonFinite
from curvserve_client.rules import DiagGGN
from playwright.sync_api import Browser, Page

from curvserve.data import load_digits
from tests.page.browser import running_browser
from tests.server.process import serving

BATCH = 64
SECONDS = 25
LR, DAMPING = 2e-4, 1e-3
DESKTOP, PHONE = (1280, 900), (390, 844)


def main(folder: Path) -> None:
    """Train, look, and write the pictures."""
    folder.mkdir(parents=True, exist_ok=True)
    arguments = ("--model", "mnist_cnn", "--log-level", "error", "--data-dir", str(folder / "kept"))
    with (
        serving(*arguments) as server,
        running_browser() as browser,
        Client(server.address) as client,
        client.create_session(
            "mnist_cnn", "digits", rule=DiagGGN(lr=LR, damping=DAMPING)
        ) as session,
    ):
        address = f"{server.address}/#digits"
        train(session, shown(browser, address, DESKTOP, "light"))
        sizes = {"desktop": DESKTOP, "phone": PHONE}
        for name, scheme in itertools.product(sizes, ("light", "dark")):
            page = shown(browser, address, sizes[name], scheme)
            shot(page, folder / f"{name}-{scheme}.png")
        fail(session)
        shot(shown(browser, address, DESKTOP, "light"), folder / "non-finite.png")
        empty = shown(browser, f"{server.address}/#mnist_cnn", DESKTOP, "light")
        shot(empty, folder / "empty.png")
        page = shown(browser, f"{server.address}/docs", DESKTOP, "light")
        page.locator("main > details").nth(0).click()
        shot(page, folder / "docs.png")


def train(session: RemoteSession, page: Page) -> None:
    """Take steps for a while."""
    images, labels = load_digits("train")
    optimizer = RemoteDiagGGNOptimizer(session.parameters(), lr=LR, damping=DAMPING)
    generator = torch.Generator().manual_seed(0)
    began = page.evaluate("performance.now()")
    while page.evaluate("performance.now()") - began < 1000 * SECONDS:
        for _ in range(5):
            chosen = torch.randint(len(labels), (BATCH,), generator=generator)
            optimizer.step_on(images[chosen], labels[chosen])


def fail(session: RemoteSession) -> None:
    """Take a step that overflows, and some more."""
    images, labels = load_digits("train")
    with suppress(NonFinite):
        session.step(images[:BATCH], labels[:BATCH], lr=3e38, damping=1e-30)
    for _ in range(20):
        session.step(images[:BATCH], labels[:BATCH])


def shown(browser: Browser, address: str, size: tuple[int, int], scheme: str) -> Page:
    """Return a page that has drawn what there is."""
    width, height = size
    context = browser.new_context(
        viewport={"width": width, "height": height},
        color_scheme="dark" if scheme == "dark" else "light",
    )
    page = context.new_page()
    page.goto(address)
    if not address.endswith("/docs"):
        page.wait_for_function("() => globalThis.curvserve?.ticks.length > 1")
    return page


def shot(page: Page, file: Path) -> None:
    """Write a picture of the whole page."""
    page.wait_for_timeout(1200)  # the next drawing
    page.screenshot(path=file, full_page=True)
    page.context.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
