"""A thread that owns a device."""

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from time import sleep

import torch

from ..engine import native


class ComputeThread(ThreadPoolExecutor):
    """One thread, always the same, with as many workers as torch has when it is made.

    OpenMP keeps a team of workers for every thread that calls it, so a pool of threads would fight
    over the cores.
    """

    def __init__(self, device: torch.device) -> None:
        """Prepare.

        Args:
            device: what it computes on.
        """
        super().__init__(1, f"curvserve-compute-{device}", initializer=self._begin)
        self._device = device
        self._task: Path | None = None
        # a thread asks torch for their number once: what is set for others later is not for it
        self.submit(torch.get_num_threads).result()
        if device.type == "cpu":
            self.submit(native.bind_team).result()

    def join(self) -> None:
        """Wait for the end of the thread, and of what it frees behind its last line of Python.

        What the engine keeps with the thread needs the interpreter to be freed. Where that ended
        first, the process was aborted: 2 of 42 times, on a busy machine.
        """
        self.shutdown(wait=True)
        while self._task is not None and self._task.exists():
            sleep(0.001)

    def _begin(self) -> None:
        self._task = Path(f"/proc/self/task/{threading.get_native_id()}")  # on Linux
        if self._device.type == "cuda":
            # kernels of our own are launched on the thread's current device, not on their tensors'
            torch.cuda.set_device(self._device)
