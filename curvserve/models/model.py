"""The recipe of a model."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Self

from torch import Tensor, nn

from .inference import infer
from .specification import SampleSpec

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
"""What a model, or a session, can be called."""

NAME_EXPECTED = "1 to 64 letters, digits, '.', '-', '_', a letter or digit first"

Metric = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Model:
    """The recipe of a model that can be served; nothing is built until a server asks for it.

    Attributes:
        name: what clients call it.
        build: returns the network with freshly drawn parameters, its modules in the mode (training
            or evaluation) that steps and curvature are to see them in.
        loss: returns the loss module, called with (outputs, targets).
        inputs: what one sample of the inputs must be.
        targets: what one sample of the targets must be.
        metrics: metric name -> function of (outputs, targets) that returns a 0-dim tensor.
        max_batch: the largest number of samples in one batch.
    """

    name: str
    build: Callable[[], nn.Module]
    loss: Callable[[], nn.Module]
    inputs: SampleSpec
    targets: SampleSpec
    metrics: Mapping[str, Metric] = field(default_factory=dict)
    max_batch: int = 4096

    @classmethod
    def infer(
        cls,
        name: str,
        build: Callable[[], nn.Module],
        loss: Callable[[], nn.Module],
        inputs: SampleSpec | Tensor,
        metrics: Mapping[str, Metric] | None = None,
        max_batch: int = 4096,
    ) -> Self:
        """Return a model whose specifications follow from an example and its loss.

        The network is built and run once, on a batch like the example: the outputs and the kind of
        loss say what the targets are.

        Args:
            name: what clients call it.
            build: returns the network.
            loss: returns a loss of torch whose targets follow from the outputs: cross entropies,
                squared and absolute errors, binary and Poisson ones.
            inputs: a batch of floating point numbers, samples first, of which dtype and shape
                count; or a specification, which integers need for their range.
            metrics: metric name -> function of (outputs, targets).
            max_batch: the largest number of samples in one batch.

        Raises:
            ModelUnfit: it cannot be built or run, or a specification cannot be inferred; the text
                says what to write.
        """
        found, targets = infer(name, build, loss, inputs)
        return cls(name, build, loss, found, targets, metrics or {}, max_batch)
