"""The example's optimizer for training in this process."""

from collections.abc import Callable
from typing import Any, overload

import torch
from curvserve_client.rules import DiagGGN
from torch import Tensor
from torch.optim.optimizer import ParamsT


class DiagGGNOptimizer(torch.optim.Optimizer):
    """Gradient descent preconditioned with the diagonal of the generalised Gauss-Newton matrix.

    p -= lr * p.grad / (p.diag_ggn_mc + damping): the same arithmetic, bit for bit, as a step on a
    server (`curvserve_client.rules.DiagGGN`). Dangel, Kunstner, Hennig, "BackPACK: Packing more
    into backprop", ICLR 2020.

    Example:
        >>> optimizer = DiagGGNOptimizer(model.parameters(), lr=0.05, damping=1.0)
        >>> optimizer.zero_grad()
        >>> with backpack(DiagGGNMC()):
        ...     loss_function(model(x), y).backward()
        >>> optimizer.step()
    """

    def __init__(
        self, params: ParamsT, lr: float = DiagGGN.lr, damping: float = DiagGGN.damping
    ) -> None:
        """Prepare the optimizer.

        Args:
            params: parameters, or groups of them, of a module that was extended.
            lr: step size, >= 0.
            damping: what is added to the curvature, > 0.

        Raises:
            InvalidRule: an option is out of its range.
        """
        DiagGGN(lr, damping)
        super().__init__(params, {"lr": lr, "damping": damping})

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Update every parameter that has a gradient.

        Args:
            closure: computes the loss again and returns it; runs first.

        Returns:
            What the closure returned.

        Raises:
            RuntimeError: a parameter has a gradient and no `diag_ggn_mc`.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            self._update(group)
        return loss

    @torch.no_grad()
    def _update(self, group: dict[str, Any]) -> None:
        rule = DiagGGN(group["lr"], group["damping"])
        trained = [parameter for parameter in group["params"] if parameter.grad is not None]
        updated = [rule.update(parameter, _quantities(parameter)) for parameter in trained]
        for parameter, new in zip(trained, updated, strict=True):
            parameter.copy_(new)


def _quantities(parameter: Tensor) -> dict[str, Tensor]:
    curvature = getattr(parameter, "diag_ggn_mc", None)
    if parameter.grad is None or not isinstance(curvature, Tensor):
        raise RuntimeError(
            f"a parameter of shape {list(parameter.shape)} has a gradient and no diag_ggn_mc: "
            "extend(model), extend(loss), and call backward() inside `with backpack(DiagGGNMC()):`"
        )
    return {"grad": parameter.grad, "diag_ggn_mc": curvature}
