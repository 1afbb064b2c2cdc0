from collections.abc import Iterator

import pytest

from .worker import Workers


@pytest.fixture(scope="session")
def workers() -> Iterator[Workers]:
    """Processes that train on a data folder, to be killed."""
    with Workers() as started:
        yield started
