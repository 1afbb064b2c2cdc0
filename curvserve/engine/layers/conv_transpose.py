"""``nn.ConvTranspose1d``, ``nn.ConvTranspose2d`` and ``nn.ConvTranspose3d`` with every option."""

from typing import Any

from torch import Tensor, einsum, nn
from torch.nn import functional as F

from curvserve.engine.layers.base import LayerRule

__all__ = ["ConvTranspose"]


class ConvTranspose(LayerRule):
    """A convolution, with a flipped kernel, of the input spread out by the stride."""

    kinds = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)

    def rows(self, module: Any, name: str, a: Tensor, s: Tensor) -> Tensor:
        """See the base class; ``a`` is ``[N, *, C, *space]``, ``s`` is ``[N, *, O, *space']``."""
        samples, own = len(s), len(module.kernel_size) + 1
        space = s.shape[1 - own :]
        s = s.reshape(samples, -1, *s.shape[-own:]).flatten(3)  # [N, extra, O, positions]
        if name == "bias":
            return s.sum((1, 3))
        patches = _patches(module, a.reshape(-1, *a.shape[-own:]), space)
        patches = patches.unflatten(0, (samples, -1)).unflatten(2, (module.groups, -1))
        s = s.unflatten(2, (module.groups, -1))
        return einsum("ntgol,ntgckl->ngcok", s, patches).reshape(samples, *module.weight.shape)

    def matrices(
        self, module: Any, name: str, a: Tensor, s: Tensor
    ) -> tuple[Tensor, Tensor] | None:
        """The patches, K running over ``[C, *kernel]``, and the cotangents (without groups)."""
        if name == "bias" or module.groups > 1:
            return None
        samples, own = len(s), len(module.kernel_size) + 1
        patches = _patches(module, a.reshape(-1, *a.shape[-own:]), s.shape[1 - own :])
        patches = patches.flatten(1, 2).mT
        cotangents = s.reshape(-1, *s.shape[-own:]).flatten(2).mT
        return (
            patches.reshape(samples, -1, patches.shape[-1]),
            cotangents.reshape(samples, -1, cotangents.shape[-1]),
        )


def _patches(module: Any, a: Tensor, space: Any) -> Tensor:
    """What each position of the output is made of, ``[N, C, kernel, positions]``."""
    options = (module.kernel_size, module.dilation, module.stride, module.padding, space)
    axes = list(enumerate(zip(*options, strict=True), start=2))
    spread = a.new_zeros(
        *a.shape[:2], *(step * (a.shape[i] - 1) + 1 for i, (_, _, step, _, _) in axes)
    )
    spread_over: Any = (..., *(slice(None, None, step) for _, (_, _, step, _, _) in axes))
    spread[spread_over] = a
    pads: list[int] = []
    for axis, (size, gap, _, padding, length) in reversed(axes):
        before = gap * (size - 1) - padding
        pads += [before, length + gap * (size - 1) - spread.shape[axis] - before]
    spread = F.pad(spread, pads)
    for axis, (size, gap, _, _, _) in axes:
        spread = spread.unfold(axis, gap * (size - 1) + 1, 1)[..., ::gap].flip(-1)
    count = len(axes)
    order = [0, 1, *range(2 + count, 2 + 2 * count), *range(2, 2 + count)]
    return spread.permute(order).flatten(2 + count).flatten(2, 1 + count)
