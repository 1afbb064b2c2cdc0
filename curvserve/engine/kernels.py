"""The kernels by which torch computes attention, recurrent nets, weight norm and bags.

Which of the first two run is a setting of the whole process, so one thread at a time chooses.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from curvserve.engine.plain import PlainOperations

__all__ = ["math_attention", "plain_kernels"]

_setting = threading.RLock()


@contextmanager
def math_attention() -> Iterator[None]:
    """Attention by plain operations, which can be batched by ``vmap``."""
    with _setting, sdpa_kernel(SDPBackend.MATH):
        yield


@contextmanager
def plain_kernels() -> Iterator[None]:
    """A forward pass inside can be differentiated twice, and rightly.

    Fused attention, cuDNN's recurrent nets and bags of embeddings have no second derivative, and
    fused weight norm has a wrong one: plain operations take their place. Other threads wait at the
    same block.

    Example:
        >>> with plain_kernels():
        ...     loss = criterion(model(inputs), targets)
    """
    with math_attention(), torch.backends.cudnn.flags(enabled=False), PlainOperations():
        yield
