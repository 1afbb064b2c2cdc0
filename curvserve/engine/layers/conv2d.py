"""``nn.Conv2d`` with any stride, padding (mode), dilation and number of groups."""

from torch import Tensor, einsum, nn
from torch.nn import functional as F

from curvserve.engine.layers.base import LayerRule

__all__ = ["Conv2d"]


class Conv2d(LayerRule):
    """A convolution is a linear layer on patches: the row for W is ``sum_l s_l patch_l^T``."""

    kinds = (nn.Conv2d,)

    def rows(self, module: nn.Module, name: str, a: Tensor, s: Tensor) -> Tensor:
        """See the base class; ``a`` is ``[N, *, C, H, W]``, ``s`` is ``[N, *, O, H', W']``."""
        assert isinstance(module, nn.Conv2d)
        samples = len(s)
        if name == "bias":
            return s.flatten(1, -4).sum((1, 3, 4)) if s.dim() > 4 else s.sum((2, 3))
        patches = _patches(module, a.reshape(-1, *a.shape[-3:]))
        patches = patches.unflatten(0, (samples, -1)).unflatten(2, (module.groups, -1))
        outputs, positions = s.shape[-3] // module.groups, s.shape[-2] * s.shape[-1]
        s = s.reshape(samples, -1, module.groups, outputs, positions)
        return einsum("ntgol,ntgkl->ngok", s, patches).reshape(samples, *module.weight.shape)

    def matrices(
        self, module: nn.Module, name: str, a: Tensor, s: Tensor
    ) -> tuple[Tensor, Tensor] | None:
        """The patches, and the cotangents at the positions they belong to."""
        assert isinstance(module, nn.Conv2d)
        if name == "bias" or module.groups > 1:
            return None
        samples = len(s)
        patches = _patches(module, a.reshape(-1, *a.shape[-3:])).mT
        cotangents = s.reshape(-1, *s.shape[-3:]).flatten(2).mT
        return (
            patches.reshape(samples, -1, patches.shape[-1]),
            cotangents.reshape(samples, -1, cotangents.shape[-1]),
        )


def _patches(module: nn.Conv2d, a: Tensor) -> Tensor:
    """The input patches that the kernel sees, ``[N, C * kh * kw, H' * W']``."""
    # The pair of paddings for each axis, last axis first, as F.pad takes them.
    pads = module._reversed_padding_repeated_twice
    if any(pads):
        mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
        a = F.pad(a, pads, mode=mode)
    return F.unfold(a, module.kernel_size, dilation=module.dilation, stride=module.stride)
