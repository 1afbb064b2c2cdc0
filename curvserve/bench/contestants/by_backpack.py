"""The peer."""

import warnings
from typing import Any

import torch
from torch import nn

from ...engine import channels_last
from ..case import Task
from .base import OnParameters

# hooks on modules whose input needs no gradient, of which torch warns
warnings.filterwarnings("ignore", message="Full backward hook is firing")

PLAIN = (
    *(nn.Linear, nn.Conv2d, nn.Flatten, nn.ReLU, nn.Sigmoid, nn.Tanh),
    *(nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d),
)


class BackPACK(OnParameters):
    """BackPACK as its pages show it; nets that are no chain of modules by its own converter."""

    name = "BackPACK"
    package = "backpack"

    def __init__(self, task: Task) -> None:
        """Extend the net and the loss."""
        import backpack

        super().__init__(task)
        self._peer: Any = backpack
        converted = not _is_chain(self.net)
        if converted:
            self.net.apply(_not_in_place)
        self.net = backpack.extend(self.net, use_converter=converted)
        backpack.extend(self.loss)

    @classmethod
    def cannot(cls, task: Task) -> str:
        """It has no rule for attention and layer norms."""
        unknown = nn.MultiheadAttention | nn.LayerNorm
        found = any(isinstance(m, unknown) for m in task.net.modules())
        return "it has no rule for attention and layer norms" if found else ""

    def run(self) -> None:
        """Do one pass."""
        extension = getattr(self._peer.extensions, self.task.quantity)(**self.task.options)
        with self._peer.backpack(extension):
            super().run()


class ChannelsLast(BackPACK):
    """BackPACK, with net and images in the format that a CPU convolves fastest."""

    name = "BackPACK, channels_last"

    @classmethod
    def cannot(cls, task: Task) -> str:
        """There must be channels."""
        if not any(isinstance(m, nn.Conv2d) for m in task.net.modules()):
            return "there is no convolution: it is BackPACK as it is"
        return super().cannot(task)

    def __init__(self, task: Task) -> None:
        """Change the format too."""
        super().__init__(task)
        self.net.to(memory_format=torch.channels_last)
        self.inputs = channels_last(task.inputs)


def _is_chain(net: nn.Module) -> bool:
    return isinstance(net, nn.Sequential) and all(isinstance(m, PLAIN) for m in net)


def _not_in_place(module: nn.Module) -> None:
    if isinstance(module, nn.ReLU):
        module.inplace = False
