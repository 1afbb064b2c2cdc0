"""What the page costs: a step over HTTP with the page open in a browser, and closed.

Server, trainer and browser are on this machine, so the browser's own work is in the figure too. The
browser runs all the time; in turns it shows the page or nothing. The server's own time is of its
process, as /metrics has it.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from statistics import fmean, median
from time import perf_counter

import httpx
from curvserve_client import RemoteDiagGGNOptimizer, connect
from playwright.sync_api import Page
from torch import Tensor

from benchmarks.options import Options, Result
from curvserve.bench import about, aligned, number
from curvserve.data import load_digits
from tests.page.browser import running_browser
from tests.server.process import serving

BATCH, STEPS = 64, 40
SETTLING = 10
"""Steps of each turn that are not measured: the browser opens or closes a page meanwhile."""

LIVE = "() => document.getElementById('connection').textContent === 'live'"
MODEL = "mnist_cnn"

CPU_SECONDS = re.compile(r"^process_cpu_seconds_total (\S+)$", re.MULTILINE)


@dataclass
class Turns:
    """What was measured in one state of the page.

    Attributes:
        seconds: of each step, turn by turn.
        cpu: seconds of the server's own time for each turn; what else runs does not disturb them.
    """

    seconds: list[list[float]] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)

    def milliseconds(self) -> tuple[float, float]:
        """Return the median of a step, and the mean of the server's own time for one."""
        steps = [step for turn in self.seconds for step in turn]
        return 1000 * median(steps), 1000 * fmean(self.cpu) / STEPS


def part(options: Options) -> Iterator[Result]:
    """Time steps with each number of threads of the server."""
    images, labels = (t[: options.batch or BATCH] for t in load_digits("train"))
    lines: list[str] = []
    tables = []
    for threads in options.threads if options.device.type == "cpu" else options.threads[:1]:
        arguments = ("--model", MODEL, "--device", str(options.device), "--log-level", "warning")
        with (
            serving(*arguments, OMP_NUM_THREADS=str(threads)) as server,
            running_browser() as browser,
        ):
            page = browser.new_page(viewport={"width": 1280, "height": 900})
            closed, opened = timed(server.address, page, (images, labels), options)
        pairs = zip(opened.seconds, closed.seconds, strict=True)
        ratio = median(median(one) / median(other) for one, other in pairs)
        lines += [f"CPU threads of the server: {threads}", ""]
        head = ["page", "ms", "over closed, by turn", "the server's CPU, ms"]
        rows = [
            ["closed", *map(number, closed.milliseconds())],
            ["open", *map(number, opened.milliseconds())],
        ]
        rows[0].insert(2, "")
        rows[1].insert(2, f"{ratio:.3f}")
        lines += [*aligned(head, rows), ""]
        figures = {
            "closed": closed.milliseconds(),
            "open": opened.milliseconds(),
            "ratio": ratio,
            "turns": len(opened.seconds),
        }
        tables.append({"threads": threads, "batch": len(labels), **figures})
    yield Result(lines, {"about": about(options.device), "tables": tables})


def timed(
    address: str, page: Page, batch: tuple[Tensor, Tensor], options: Options
) -> tuple[Turns, Turns]:
    """Return what was measured with the page closed and open."""
    closed, opened = Turns(), Turns()
    with (
        httpx.Client(base_url=address) as http,
        connect(address, model=MODEL) as session,
    ):
        optimizer = RemoteDiagGGNOptimizer(session.parameters(), lr=1e-6)

        def measure(turns: Turns) -> None:
            for _ in range(SETTLING):
                optimizer.step_on(*batch)
            before, seconds = _cpu_seconds(http), []
            for _ in range(STEPS):
                began = perf_counter()
                optimizer.step_on(*batch)
                seconds.append(perf_counter() - began)
            turns.seconds.append(seconds)
            turns.cpu.append(_cpu_seconds(http) - before)

        measure(Turns())  # until there is a program for this shape
        begun = perf_counter()
        for index in range(options.rounds):
            if index >= 3 and perf_counter() - begun > options.seconds:
                break
            for turns in (opened, closed) if index % 2 else (closed, opened):
                _show(page, address if turns is opened else "about:blank")
                measure(turns)
    return closed, opened


def _cpu_seconds(http: httpx.Client) -> float:
    found = CPU_SECONDS.search(http.get("/metrics").text)
    assert found is not None
    return float(found[1])


def _show(page: Page, address: str) -> None:
    page.goto(address)
    if address.startswith("http"):
        page.wait_for_function(LIVE)
        page.wait_for_function("() => curvserve.session !== null")
