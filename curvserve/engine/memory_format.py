"""Images with their channels last: what a CPU convolves and pools fastest."""

from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from curvserve.engine.attention import attending

__all__ = ["channels_last", "convolves", "run"]

_BENT: "WeakKeyDictionary[nn.Module, bool]" = WeakKeyDictionary()
"""Whether a model takes its images so; one that has a ``view`` of a map does not."""


def channels_last(images: Tensor) -> Tensor:
    """The same values with their channels last in memory, as the strides say even of a single one.

    :func:`curvserve.engine.evaluate` hands images over so, on a CPU, to a model that convolves
    them, and so does a server. A loop of one's own that does the same gets the same numbers, to
    the bit where no convolution's gradient leaves out zeros, see docs/decisions/0040.

    Args:
        images: ``[N, C, H, W]``.
    """
    n, c, h, w = images.shape
    last = images.permute(0, 2, 3, 1).contiguous()
    return last.as_strided((n, c, h, w), (c * h * w, 1, c * w, c))


def run(model: nn.Module, inputs: Tensor) -> Tensor:
    """The model's output, its images handed over with their channels last where that is faster.

    Pooling a map with the channels first is scalar code in PyTorch, and convolutions reorder it.
    The numbers are the same up to the rounding of other kernels. A model that cannot be run so (it
    asks for a ``view`` that only exists with the channels first) is run as it is from then on.
    How it attends is chosen likewise, see :func:`.attention.attending`.

    Args:
        model: The model.
        inputs: Its input.
    """
    if not _is_image(inputs) or not convolves(model):
        return _output(model, inputs)
    if model not in _BENT:
        return _tried(model, inputs)
    return _output(model, channels_last(inputs) if _BENT[model] else inputs)


def convolves(model: nn.Module) -> bool:
    """Whether a model convolves images."""
    return any(isinstance(module, nn.Conv2d) for module in model.modules())


def _tried(model: nn.Module, inputs: Tensor) -> Tensor:
    """Runs a model so for the first time; whatever that changes is put back if it fails."""
    buffers = {name: b.detach().clone() for name, b in model.named_buffers()}
    numbers = torch.get_rng_state()
    try:
        outputs = _output(model, channels_last(inputs))
    except RuntimeError:
        torch.set_rng_state(numbers)
        for name, buffer in model.named_buffers():
            buffer.data.copy_(buffers[name])  # by data: nothing is to see that it was written to
        outputs = _output(model, inputs)
        _BENT[model] = False
        return outputs
    _BENT[model] = True
    return outputs


def _output(model: nn.Module, inputs: Tensor) -> Tensor:
    with attending(model, inputs):
        outputs: Tensor = model(inputs)
    return outputs


def _is_image(inputs: Tensor) -> bool:
    return inputs.dim() == 4 and inputs.device.type == "cpu" and inputs.is_floating_point()
