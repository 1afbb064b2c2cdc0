"""Which threads of a server have OpenMP workers: libgomp's waits depend on how many there are."""

from pathlib import Path

import httpx
import torch
from curvserve_client import Client

from .process import PATIENCE, serving

BATCH = torch.randn(64, 1, 28, 28), torch.zeros(64, dtype=torch.int64)


def threads(folder: Path, count: int) -> list[int]:
    """Return how many threads a server has that has computed, beside steps, all that it can.

    It is started twice, so that a session is brought back.
    """
    found = []
    kept = ("--data-dir", str(folder / str(count)), "--log-level", "warning")
    environment = {"OMP_NUM_THREADS": str(count), "OPENBLAS_NUM_THREADS": "1"}
    for _ in range(2):
        with (
            serving(*kept, **environment) as server,
            Client(server.address) as client,
            httpx.stream("GET", f"{server.address}/v1/events", timeout=PATIENCE) as events,
        ):
            session = client.session("mnist_cnn")
            session.curvature(*BATCH, bfloat16=("grad",))
            session.step(*BATCH)
            assert "event: curvature" in events.iter_lines()  # once the step has been looked at
            found.append(len(list(Path(f"/proc/{server.process.pid}/task").iterdir())))
    return found


def test_with_two_threads_there_is_one_worker_more_than_with_one(tmp_path: Path) -> None:
    assert threads(tmp_path, 2) == [count + 1 for count in threads(tmp_path, 1)]
