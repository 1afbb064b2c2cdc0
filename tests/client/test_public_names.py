"""The package's face: what is public is listed, sorted, there, and documented."""

import inspect
import subprocess
import sys

import curvserve_client
import pytest


def test_public_names_are_sorted() -> None:
    assert curvserve_client.__all__ == sorted(curvserve_client.__all__)


@pytest.mark.parametrize("name", curvserve_client.__all__)
def test_a_public_name_is_there_and_documented(name: str) -> None:
    assert inspect.getdoc(getattr(curvserve_client, name))


def test_the_version_can_be_read_without_importing() -> None:
    source = inspect.getsource(curvserve_client)
    assert f'\n__version__ = "{curvserve_client.__version__}"\n' in source


ALONE = """
import sys
for absent in ("numpy", "safetensors", "curvserve", "fastapi", "pydantic", "torchvision"):
    sys.modules[absent] = None
import torch
from curvserve_client import wire
body = bytearray(b"".join(wire.encode({"x": torch.ones(2, dtype=torch.bfloat16)})))
print(wire.decode(body)[0]["x"].tolist())
"""


def test_a_training_host_needs_torch_and_httpx_alone() -> None:
    command = [sys.executable, "-W", "ignore", "-c", ALONE]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.stdout, done.returncode) == ("[1.0, 1.0]\n", 0), done.stderr
