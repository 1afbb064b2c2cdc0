"""Which versions are installed."""

import platform
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version

import curvserve_client

from .. import __version__
from .check import Check

_NEEDED = (
    "torch",
    "torchvision",
    "fastapi",
    "uvicorn",
    "uvloop",
    "pydantic",
    "httpx",
    "typer",
    "xxhash",
    "prometheus-client",
)


def software() -> Iterator[Check]:
    """Yield the version of each package that a server needs."""
    yield Check("python", f"{platform.python_version()} on {platform.system()}")
    yield Check("curvserve", __version__)
    client = curvserve_client.__version__
    if client == __version__:
        yield Check("curvserve-client", client)
    else:
        advice = f"pip install curvserve-client=={__version__}: both speak one protocol"
        yield Check("curvserve-client", client, "warning", advice)
    for package in _NEEDED:
        try:
            yield Check(package, version(package))
        except PackageNotFoundError:
            yield Check(package, "not installed", "error", f"pip install {package}")
