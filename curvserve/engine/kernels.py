"""The kernels by which torch computes attention, recurrent nets, weight norm and bags; and sums.

Which of the first two run is a setting of the whole process, and so is what ``vmap`` says of
operations that it cannot batch.
"""

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from curvserve.engine.plain import PlainOperations

__all__ = ["batchable", "difference", "plain_kernels", "reproducible"]


class _Setting:
    """A setting of the process, chosen while any thread is in a block of it.

    The blocks of several threads overlap, and none waits for another. On a GPU the hooks of all
    backward passes run in one thread of autograd's: would a hook wait there for the block of a
    thread that itself waits for a backward pass, neither could ever go on.
    """

    def __init__(self, choose: Callable[[], AbstractContextManager[Any]]) -> None:
        """Prepares.

        Args:
            choose: Makes the block in which the setting is chosen.
        """
        self._choose = choose
        self._lock = threading.Lock()
        self._inside = 0
        self._chosen = ExitStack()

    @contextmanager
    def __call__(self) -> Iterator[None]:
        with self._lock:
            if not self._inside:
                self._chosen.enter_context(self._choose())
            self._inside += 1
        try:
            yield
        finally:
            with self._lock:
                self._inside -= 1
                if not self._inside:
                    self._chosen.close()


@contextmanager
def _no_cudnn() -> Iterator[None]:
    # not cudnn.flags, which sets all its other flags to defaults too
    before = torch.backends.cudnn.enabled
    torch.backends.cudnn.enabled = False
    try:
        yield
    finally:
        torch.backends.cudnn.enabled = before


@contextmanager
def _no_warning() -> Iterator[None]:
    functorch: Any = torch._C._functorch  # not declared to type checkers
    functorch._set_vmap_fallback_warning_enabled(False)
    try:
        yield
    finally:
        functorch._set_vmap_fallback_warning_enabled(True)


@contextmanager
def _same_bits() -> Iterator[None]:
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # asked for with the rest
    mode = torch.get_deterministic_debug_mode()
    memory: Any = torch.utils.deterministic  # not declared to type checkers
    filled = memory.fill_uninitialized_memory
    cudnn = torch.backends.cudnn.deterministic
    efficient = torch.backends.cuda.mem_efficient_sdp_enabled()
    torch.set_deterministic_debug_mode("warn")
    memory.fill_uninitialized_memory = False
    torch.backends.cudnn.deterministic = True
    torch.backends.cuda.enable_mem_efficient_sdp(False)
    try:
        yield
    finally:
        torch.set_deterministic_debug_mode(mode)
        memory.fill_uninitialized_memory = filled
        torch.backends.cudnn.deterministic = cudnn
        torch.backends.cuda.enable_mem_efficient_sdp(efficient)


_math_attention = _Setting(lambda: sdpa_kernel(SDPBackend.MATH))
_without_cudnn = _Setting(_no_cudnn)
_without_warning = _Setting(_no_warning)
_deterministic = _Setting(_same_bits)


@contextmanager
def batchable() -> Iterator[None]:
    """Has attention computed by operations that ``vmap`` can batch.

    Other operations without a batching rule are right too, only slower: no warning.
    """
    with _math_attention(), _without_warning():
        yield


@contextmanager
def plain_kernels() -> Iterator[None]:
    """A forward pass inside can be differentiated twice, and rightly.

    Fused attention, cuDNN's recurrent nets and bags of embeddings have no second derivative, and
    fused weight norm has a wrong one: plain operations take their place. Attention and cuDNN are
    chosen for the whole process, so other threads compute by plain kernels too meanwhile.

    Example:
        >>> with plain_kernels():
        ...     loss = criterion(model(inputs), targets)
    """
    with _math_attention(), _without_cudnn(), PlainOperations():
        yield


@contextmanager
def reproducible() -> Iterator[None]:
    """Has a GPU compute the same bits each time, in the whole process, as far as torch can.

    Attention that is efficient with memory cannot, and is done in plain operations. Of what else
    has no such kernel torch warns, naming the operation. Blocks may overlap.

    Example:
        >>> with reproducible():
        ...     found = evaluator(inputs, targets, ["grad", "diag_ggn_mc"], seed=0)
    """
    with _deterministic():
        yield


def difference(recorded: Tensor) -> float:
    """How far another kernel's result may be from a recorded one, relative to its largest entry.

    Another dropout mask or a moved state is far beyond it. On a GPU cuDNN rounds what it
    multiplies in float32 to the ten bits of TF32, by torch's default, and other kernels do not;
    and torch's fused weight norm is off by 3e-8 there in float64.
    """
    if recorded.dtype == torch.float64:
        return 1e-6 if recorded.is_cuda else 1e-9
    if recorded.dtype == torch.float32:
        return 5e-3 if recorded.is_cuda else 1e-4
    return 1e-2
