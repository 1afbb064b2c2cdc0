"""What tests of the client compare."""

import torch
from curvserve_client import RemoteSession
from torch import Tensor

Batches = list[tuple[Tensor, Tensor]]


def same(left: RemoteSession, right: RemoteSession) -> bool:
    """Tell whether two sessions have the same parameters, bit for bit."""
    here, there = left.pull(), right.pull()
    return all(torch.equal(here[name], there[name]) for name in here)
