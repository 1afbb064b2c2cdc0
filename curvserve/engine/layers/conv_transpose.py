"""``nn.ConvTranspose1d``, ``nn.ConvTranspose2d`` and ``nn.ConvTranspose3d`` with every option."""

from typing import Any, ClassVar

from torch import Tensor, einsum, nn
from torch.nn import functional as F

from curvserve.engine.layers.base import LayerRule
from curvserve.engine.rows import Matrices

__all__ = ["ConvTranspose"]


class ConvTranspose(LayerRule):
    """A convolution, with a flipped kernel, of the input spread out by the stride."""

    kinds = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
    batched: ClassVar[bool] = True

    def axes(self, module: Any) -> int:
        """Batch, channels, space."""
        return 2 + len(module.kernel_size)

    def rows(self, module: Any, name: str, a: Tensor, s: Tensor) -> Tensor:
        """See the base class; ``a`` is ``[N, K, C, *space]``, ``s`` is ``[N, K, O, *space']``."""
        space, s = s.shape[3:], s.flatten(3)
        if name == "bias":
            return s.sum((1, 3))
        patches = _patches(module, a.flatten(0, 1), space).unflatten(0, s.shape[:2])
        patches, s = (t.unflatten(2, (module.groups, -1)) for t in (patches, s))
        return einsum("ntgol,ntgckl->ngcok", s, patches).reshape(len(s), *module.weight.shape)

    def matrices(self, module: Any, name: str, a: Tensor, s: Tensor) -> Matrices | None:
        """The patches, K running over ``[C, *kernel]``, and the cotangents (without groups)."""
        if name == "bias" or module.groups > 1:
            return None
        patches = _patches(module, a.flatten(0, 1), s.shape[3:]).unflatten(0, s.shape[:2])
        return Matrices(patches.flatten(2, 3).mT.flatten(1, 2), s.flatten(3).mT.flatten(1, 2))


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
