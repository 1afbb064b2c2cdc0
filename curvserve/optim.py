"""The example's optimizer for training in this process."""

from collections.abc import Callable
from typing import overload

from curvserve_client.local import RuleOptimizer
from curvserve_client.rules import DiagGGN, override_rule, rule_options
from torch.optim.optimizer import ParamsT


class DiagGGNOptimizer(RuleOptimizer):
    """Gradient descent preconditioned with the diagonal of the generalised Gauss-Newton matrix.

    p -= lr * p.grad / (p.diag_ggn_mc + damping): the same arithmetic, bit for bit, as a step on a
    server (`curvserve_client.rules.DiagGGN`, whose other options are taken here too). Dangel,
    Kunstner, Hennig, "BackPACK: Packing more into backprop", ICLR 2020.

    Example:
        >>> optimizer = DiagGGNOptimizer(model.parameters(), lr=0.05, damping=1.0)
        >>> optimizer.zero_grad()
        >>> with backpack(DiagGGNMC()):
        ...     loss_function(model(x), y).backward()
        >>> optimizer.step()
    """

    _remedy = (
        "extend(model), extend(loss), and call backward() inside `with backpack(DiagGGNMC()):`"
    )

    def __init__(
        self,
        params: ParamsT,
        lr: float = DiagGGN.lr,
        damping: float = DiagGGN.damping,
        **options: float,
    ) -> None:
        """Prepare the optimizer.

        Args:
            params: parameters, or groups of them, of a module that was extended.
            lr: step size, >= 0.
            damping: what is added to the curvature, > 0.
            options: any other option of `DiagGGN`; each may differ from group to group.

        Raises:
            InvalidRule: an option is unknown or out of its range.
        """
        rule = override_rule(DiagGGN(lr, damping), options)
        super().__init__(params, rule_options(rule))

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Update every parameter that has a gradient.

        Args:
            closure: computes the loss again and returns it; runs first. With a `damping_interval`
                it is needed, and run once more whenever a step is tried.

        Returns:
            What the closure returned.

        Raises:
            RuntimeError: a parameter has a gradient and no `diag_ggn_mc`, or there is a
                `damping_interval` and no closure.
            InvalidRule: an option is out of its range.
        """
        loss: float | None = self._step_here(closure)
        return loss
