"""What a session takes of memory and disk: the figures of docs/operating.md.

    python -m benchmarks.sizing [--model mnist_cnn] [--batch 64] [--sessions 10]

A server of its own keeps its sessions in a folder that is removed afterwards. Memory is what
/metrics tells of the process; a server keeps what it once had, so differences are taken upwards.
"""

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import torch
from curvserve_client import Adam, Client, DiagGGN, RemoteSession
from curvserve_client.rules import Rule
from prometheus_client.parser import text_string_to_metric_families
from torch import Tensor

from curvserve.bench import aligned, say
from curvserve.sessions.durability import SNAPSHOT_EVERY

RULES: dict[str, Rule] = {
    "diag_ggn": DiagGGN(),
    "diag_ggn, momentum and average": DiagGGN(momentum=0.9, beta2=0.99),
    "adam": Adam(),
}


def main() -> None:
    """Measure, and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--model", default="mnist_cnn")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--sessions", type=int, default=10)
    given = parser.parse_args()
    with (
        tempfile.TemporaryDirectory() as folder,
        _served(given.model, Path(folder)) as url,
        Client(url) as client,
    ):
        session = client.session(given.model)
        size = sum(tensor.nbytes for tensor in session.pull().values())
        batch = _batch(client, given.model, given.batch)
        body = sum(tensor.nbytes for tensor in batch)
        say(f"{given.model}: parameters {_mb(size)}, a batch of {given.batch}: {_mb(body)}")
        say(f"server with one session: {_mb(_resident(url))}")
        session.step(*batch)
        say(f"after its first step: {_mb(_resident(url))}\n")
        rows = [
            _row(name, rule, client, url, Path(folder), given.model, batch, given.sessions)
            for name, rule in RULES.items()
        ]
    head = ["rule", "memory", "disk at first", f"disk after {2 * SNAPSHOT_EVERY} steps"]
    for line in aligned(head, rows):
        say(line)


def _row(
    name: str,
    rule: Rule,
    client: Client,
    url: str,
    folder: Path,
    model: str,
    batch: tuple[Tensor, Tensor],
    count: int,
) -> list[str]:
    """Return what a session of a rule takes, the mean over several."""
    before = _resident(url)
    sessions = [client.create_session(model, rule=rule) for _ in range(count)]
    first = _kept(folder, sessions)
    for session in sessions:
        session.step(*batch)
    memory = (_resident(url) - before) / count
    for _ in range(2 * SNAPSHOT_EVERY - 1):
        sessions[0].step(*batch)
    return [name, _mb(memory), _mb(first / count), _mb(_kept(folder, sessions[:1]))]


def _batch(client: Client, model: str, samples: int) -> tuple[Tensor, Tensor]:
    """Return a legal batch of a classifier."""
    spec = client.model(model)
    classes = int(spec.targets.maximum or 0) + 1
    inputs = torch.randn(samples, *spec.inputs.shape)
    return inputs, torch.randint(classes, (samples, *spec.targets.shape))


def _resident(url: str) -> float:
    families = text_string_to_metric_families(httpx.get(f"{url}/metrics").text)
    return next(f.samples[0].value for f in families if f.name == "process_resident_memory_bytes")


def _kept(folder: Path, sessions: list[RemoteSession]) -> float:
    files = [f for s in sessions for f in (folder / "sessions").glob(f"{s.name}@*/**/*")]
    return float(sum(file.stat().st_size for file in files if file.is_file()))


def _mb(size: float) -> str:
    return f"{size / 1e6:.1f} MB"


@contextmanager
def _served(model: str, folder: Path) -> Iterator[str]:
    command = [sys.executable, "-m", "curvserve", "serve", "--model", model, "--port", "0"]
    command += ["--data-dir", str(folder), "--log-level", "error"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield process.stdout.readline().split()[-1]
        finally:
            process.terminate()


if __name__ == "__main__":
    main()
