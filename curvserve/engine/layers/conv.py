"""``nn.Conv1d``, ``nn.Conv2d`` and ``nn.Conv3d`` with every option."""

from typing import Any, ClassVar

from torch import Tensor, einsum, nn
from torch.nn import functional as F

from curvserve.engine.layers.base import LayerRule

__all__ = ["Conv"]


class Conv(LayerRule):
    """A convolution is a linear layer on patches: the row for W is ``sum_l s_l patch_l^T``."""

    kinds = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
    batched: ClassVar[bool] = True

    def axes(self, module: Any) -> int:
        """Batch, channels, space."""
        return 2 + len(module.kernel_size)

    def rows(self, module: Any, name: str, a: Tensor, s: Tensor) -> Tensor:
        """See the base class; ``a`` is ``[N, K, C, *space]``, ``s`` is ``[N, K, O, *space']``."""
        s = s.flatten(3)
        if name == "bias":
            return s.sum((1, 3))
        patches = _patches(module, a.flatten(0, 1)).unflatten(0, s.shape[:2])
        patches, s = (t.unflatten(2, (module.groups, -1)) for t in (patches, s))
        return einsum("ntgol,ntgkl->ngok", s, patches).reshape(len(s), *module.weight.shape)

    def matrices(
        self, module: Any, name: str, a: Tensor, s: Tensor
    ) -> tuple[Tensor, Tensor] | None:
        """The patches, and the cotangents at the positions they belong to (without groups)."""
        if name == "bias" or module.groups > 1:
            return None
        patches = _patches(module, a.flatten(0, 1)).unflatten(0, s.shape[:2])
        return patches.mT.flatten(1, 2), s.flatten(3).mT.flatten(1, 2)


def _patches(module: Any, a: Tensor) -> Tensor:
    """The input patches that the kernel sees, ``[N, C * kernel, positions]``."""
    # The pair of paddings for each axis, last axis first, as F.pad takes them.
    pads = module._reversed_padding_repeated_twice
    if any(pads):
        mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
        a = F.pad(a, pads, mode=mode)
    if a.dim() == 4 and not a.is_cuda:  # where F.unfold runs a kernel for every sample
        return F.unfold(a, module.kernel_size, dilation=module.dilation, stride=module.stride)
    space = len(module.kernel_size)
    for axis, (size, gap, step) in enumerate(
        zip(module.kernel_size, module.dilation, module.stride, strict=True), start=2
    ):
        a = a.unfold(axis, gap * (size - 1) + 1, step)[..., ::gap]
    # [N, C, *positions, *kernel] -> [N, C, *kernel, *positions]
    order = [0, 1, *range(2 + space, 2 + 2 * space), *range(2, 2 + space)]
    return a.permute(order).flatten(2 + space).flatten(1, 1 + space)
