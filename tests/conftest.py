"""What every test may ask for: a server process with the built-in model; and which begin first."""

from collections.abc import Iterator

import pytest
from hypothesis import settings

from tests.server.process import serving

settings.register_profile("fuzz", max_examples=2000)  # twenty times the default: make fuzz

LONG = (
    "tests/documentation/test_pages.py",
    "tests/cluster/test_sessions.py",
    "tests/page/test_page.py",
    "tests/engine/test_conduct.py",
    "tests/crash/test_crash.py",
    "tests/client/test_conventions.py",
    "tests/end_to_end/test_demo.py",
    "tests/end_to_end/test_torchvision.py",
    "tests/engine/test_compiled.py",
    "tests/cli/test_clients.py",
    "tests/bench/test_benchmarks.py",
    "tests/cli/test_backup.py",
)
"""Files that take long, whatever the number of their tests, the longest first."""


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Have long files begin first: a core that is left one at the end has the others wait.

    What is random in the order of the rest stays as it is. Stands on `--no-loadscope-reorder`, as
    pytest-xdist would else begin with the files that have the most tests.
    """
    ranks = {file: rank for rank, file in enumerate(LONG)}
    items.sort(key=lambda item: ranks.get(item.nodeid.partition("::")[0], len(LONG)))


@pytest.fixture(scope="session")
def server_url() -> Iterator[str]:
    """The address of one `curvserve serve --model mnist_cnn`, shared by the whole run.

    Tests make sessions of their own on it, and leave the default session alone.
    """
    with serving("--model", "mnist_cnn") as server:
        yield server.address
