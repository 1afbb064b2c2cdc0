"""``nn.Conv1d``, ``nn.Conv2d`` and ``nn.Conv3d`` with every option."""

from typing import Any

from torch import Tensor, einsum, nn
from torch.nn import functional as F

from curvserve.engine.layers.base import LayerRule

__all__ = ["Conv"]


class Conv(LayerRule):
    """A convolution is a linear layer on patches: the row for W is ``sum_l s_l patch_l^T``."""

    kinds = (nn.Conv1d, nn.Conv2d, nn.Conv3d)

    def rows(self, module: Any, name: str, a: Tensor, s: Tensor) -> Tensor:
        """See the base class; ``a`` is ``[N, *, C, *space]``, ``s`` is ``[N, *, O, *space']``."""
        samples, own = len(s), len(module.kernel_size) + 1
        s = s.reshape(samples, -1, *s.shape[-own:]).flatten(3)  # [N, extra, O, positions]
        if name == "bias":
            return s.sum((1, 3))
        patches = _patches(module, a.reshape(-1, *a.shape[-own:]))
        patches = patches.unflatten(0, (samples, -1)).unflatten(2, (module.groups, -1))
        s = s.unflatten(2, (module.groups, -1))
        return einsum("ntgol,ntgkl->ngok", s, patches).reshape(samples, *module.weight.shape)

    def matrices(
        self, module: Any, name: str, a: Tensor, s: Tensor
    ) -> tuple[Tensor, Tensor] | None:
        """The patches, and the cotangents at the positions they belong to (without groups)."""
        if name == "bias" or module.groups > 1:
            return None
        samples, own = len(s), len(module.kernel_size) + 1
        patches = _patches(module, a.reshape(-1, *a.shape[-own:])).mT
        cotangents = s.reshape(-1, *s.shape[-own:]).flatten(2).mT
        return (
            patches.reshape(samples, -1, patches.shape[-1]),
            cotangents.reshape(samples, -1, cotangents.shape[-1]),
        )


def _patches(module: Any, a: Tensor) -> Tensor:
    """The input patches that the kernel sees, ``[N, C * kernel, positions]``."""
    # The pair of paddings for each axis, last axis first, as F.pad takes them.
    pads = module._reversed_padding_repeated_twice
    if any(pads):
        mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
        a = F.pad(a, pads, mode=mode)
    if a.dim() == 4:
        return F.unfold(a, module.kernel_size, dilation=module.dilation, stride=module.stride)
    space = len(module.kernel_size)
    for axis, (size, gap, step) in enumerate(
        zip(module.kernel_size, module.dilation, module.stride, strict=True), start=2
    ):
        a = a.unfold(axis, gap * (size - 1) + 1, step)[..., ::gap]
    # [N, C, *positions, *kernel] -> [N, C, *kernel, *positions]
    order = [0, 1, *range(2 + space, 2 + 2 * space), *range(2, 2 + space)]
    return a.permute(order).flatten(2 + space).flatten(1, 1 + space)
