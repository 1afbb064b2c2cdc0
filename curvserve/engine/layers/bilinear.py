"""``nn.Bilinear``: a linear layer on the outer product of its two inputs."""

from typing import Any

from torch import Tensor, nn

from curvserve.engine.layers.linear import Linear

__all__ = ["Bilinear"]


class Bilinear(Linear):
    """``y_o = x^T W_o z + b_o``: linear in ``x z^T``, taken for a row."""

    kinds = (nn.Bilinear,)

    def input(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
        """The outer products ``[N, *, in1 * in2]``."""
        given = dict(zip(("input1", "input2"), args, strict=False)) | kwargs
        products: Tensor = given["input1"].unsqueeze(-1) * given["input2"].unsqueeze(-2)
        return products.flatten(-2)

    def rows(self, module: nn.Module, name: str, a: Tensor, s: Tensor) -> Tensor:
        """See the base class."""
        return super().rows(module, name, a, s).reshape(len(s), *module.get_parameter(name).shape)
