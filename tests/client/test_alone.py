"""The client distribution where nothing of the server is: what it needs, and how it is typed."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[2]

TRAIN = """
import importlib.util, sys
for absent in ("fastapi", "pydantic", "starlette", "torchvision", "numpy", "curvserve"):
    assert importlib.util.find_spec(absent) is None, absent
import torch
from curvserve_client import Client, RemoteDiagGGNOptimizer
with Client(sys.argv[1]) as client:
    session = client.create_session("mnist_cnn", seed=5)
    optimizer = RemoteDiagGGNOptimizer(session.parameters(), lr=0.05)
    x, y = torch.ones(2, 1, 28, 28), torch.tensor([0, 1])
    optimizer.zero_grad()
    session.loss(x, y).backward()
    optimizer.step()
    print(optimizer.step_on(x, y).version)
    client.delete_session(session.name)
"""

TYPED = """
import asyncio
from collections.abc import Iterable

import torch
from curvserve_client import (
    Client, RemoteDiagGGNOptimizer, RemoteOptimizer, RemoteSession, Sophia, StepResult, connect,
    connect_async,
)
from torch import Tensor, nn
from torch.optim.lr_scheduler import StepLR

Loader = Iterable[tuple[Tensor, Tensor]]


def ordinary(url: str, loader: Loader) -> float:
    with connect(url, model="mnist_cnn") as session:
        optimizer = RemoteDiagGGNOptimizer(session.parameters(), lr=0.05, damping=1.0)
        scheduler = StepLR(optimizer, step_size=10)
        total = 0.0
        for x, y in loader:
            optimizer.zero_grad()
            loss: Tensor = session.loss(x, y)
            loss.backward()
            nn.utils.clip_grad_norm_(session.parameters(), 1.0)
            optimizer.step()
            scheduler.step()
            total += loss.item()
        result: StepResult = optimizer.step_on(x, y)
        closed: float = optimizer.step(lambda: 0.5)
        nothing: None = optimizer.step()
        return total + result.loss + closed


async def awaiting(url: str, loader: Loader) -> int:
    async with await connect_async(url, model="mnist_cnn") as session:
        optimizer = RemoteDiagGGNOptimizer(session.named_parameters())
        for x, y in loader:
            await optimizer.step_on_async(x, y)
        return session.version


def mirrored(client: Client, net: nn.Module, x: Tensor, y: Tensor) -> dict[str, Tensor]:
    session: RemoteSession = client.create_session("mnist_cnn", rule=Sophia())
    RemoteOptimizer(session.parameters(), rule="sophia", lr=0.1).step_on(x, y)
    session.mirror(net, bfloat16=["diag_ggn_mc"]).loss(x, y).backward()
    with session.pipeline() as pipeline:
        print(pipeline.step(x, y, lr=0.1).result().metrics["accuracy"])
    return session.pull()


asyncio.run(awaiting("http://localhost", []))
"""


def needed(name: str) -> Iterator[Distribution]:
    """A distribution and whatever it needs, as far as it is installed."""
    seen: set[str] = set()
    waiting = [name]
    while waiting:
        wanted = re.sub(r"[-_.]+", "-", waiting.pop()).lower()
        if wanted in seen:
            continue
        seen.add(wanted)
        try:
            found = distribution(wanted)
        except PackageNotFoundError:  # for another platform, or an extra
            continue
        yield found
        for text in found.requires or ():
            requirement = Requirement(text)
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                waiting.append(requirement.name)


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the client and what its distribution needs, and nothing else."""
    folder = tmp_path_factory.mktemp("site-packages")
    (folder / "curvserve_client").symlink_to(ROOT / "client" / "curvserve_client")
    for found in needed("curvserve-client"):
        for file in found.files or ():
            top = file.parts[0]
            source = Path(str(found.locate_file(top)))
            if top not in ("..", "__pycache__") and source.exists():
                link = folder / top
                if not link.exists():
                    link.symlink_to(source)
    return folder


def test_it_trains_with_what_it_needs_alone(server_url: str, environment: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-S", "-W", "ignore", "-c", TRAIN, server_url],
        env={"PYTHONPATH": str(environment), "PATH": os.environ["PATH"]},
        capture_output=True,
        text=True,
        check=False,
        cwd=environment,
    )
    assert (done.returncode, done.stdout) == (0, "2\n"), done.stderr


def test_a_users_script_is_typed(tmp_path: Path) -> None:
    script = tmp_path / "train.py"
    script.write_text(TYPED)
    # strict, as this project is; with its options what is known of torch is known already
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--config-file", "pyproject.toml", str(script)],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
        env={**os.environ, "MYPYPATH": str(ROOT / "client")},
    )
    assert done.returncode == 0, done.stdout
