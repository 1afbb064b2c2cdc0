"""What a seed stands for, for contestants that draw by torch's distributions."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch import Generator, Tensor
from torch.distributions import Binomial, Categorical, Normal

__all__ = ["drawing"]


@contextmanager
def drawing(seed: int) -> Iterator[None]:
    """Have torch's distributions draw what `curvserve.engine.evaluate(..., seed=seed)` does.

    Classes by inversion of the cumulative sum, in float64; for one draw each.

    Args:
        seed: of the draws.
    """
    with ExitStack() as patched:
        for kind, drawn in _DRAWN.items():

            def sample(own: Any, sample_shape: Any = (), drawn: _Drawn = drawn) -> Tensor:
                return drawn(own, tuple(sample_shape), Generator().manual_seed(seed))

            patched.enter_context(patch.object(kind, "sample", sample))
        yield


_Drawn = Callable[[Any, tuple[int, ...], Generator], Tensor]


def _classes(own: Categorical, shape: tuple[int, ...], generator: Generator) -> Tensor:
    sums = own.probs.double().cumsum(-1)
    levels = torch.rand((*shape, len(sums)), generator=generator, dtype=torch.float64)
    marks = levels.to(sums.device) * sums[:, -1]
    found = torch.searchsorted(sums, marks.T.contiguous(), right=True).T
    return found.clamp(max=sums.shape[1] - 1)


def _normal(own: Normal, shape: tuple[int, ...], generator: Generator) -> Tensor:
    noise = torch.randn((*shape, *own.loc.shape), generator=generator, dtype=torch.float64)
    return own.loc + own.scale * noise.to(own.loc)


def _binary(own: Binomial, shape: tuple[int, ...], generator: Generator) -> Tensor:
    levels = torch.rand((*shape, *own.probs.shape), generator=generator, dtype=torch.float64)
    return (levels.to(own.probs.device) < own.probs).to(own.probs)


_DRAWN: Mapping[type, _Drawn] = {Categorical: _classes, Normal: _normal, Binomial: _binary}
