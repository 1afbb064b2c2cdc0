"""curvlinops: linear operators; the one quantity that it writes out is KFAC's factors.

Its diagonals are stochastic estimates from products with a matrix (Hutchinson, XDiag): other
numbers than the Monte-Carlo diagonal of the Gauss-Newton matrix, so they do not take part.
"""

import warnings
from typing import Any

from torch import nn

from ..case import SEED, Task
from .base import Found, OnParameters, Value

# of what it stands on, when it is imported
warnings.filterwarnings("ignore", message="`torch.jit.script` is deprecated")


class Curvlinops(OnParameters):
    """`KFACLinearOperator` with Monte-Carlo labels, after a plain gradient.

    Of linear layers only: of a convolution BackPACK adds up the outputs' vectors over the positions
    before their outer product (KFAC-reduce) and the inputs' outer products (KFAC-expand), of which
    curvlinops takes either the one way or the other for both.
    """

    name = "curvlinops"
    package = "curvlinops"
    quantities = frozenset({"KFAC"})

    def __init__(self, task: Task) -> None:
        """Take the net as it is."""
        super().__init__(task)
        self._operator: Any = None

    @classmethod
    def cannot(cls, task: Task) -> str:
        """All parameters must be those of linear layers."""
        if task.mc_samples > 1:
            return "it draws several labels in another order: nothing to hold it against"
        linear = [m for m in task.net.modules() if isinstance(m, nn.Linear)]
        known = {id(p) for m in linear for p in m.parameters()}
        fits = all(id(p) in known for p in task.trained.values())
        return "" if fits else "it defines the factors of convolutions in another way"

    def run(self) -> None:
        """Do one pass; labels are drawn as torch draws them from a generator with this seed."""
        from curvlinops import KFACLinearOperator

        super().run()
        operator = KFACLinearOperator(
            self.net,
            self.loss,
            list(self.task.trained.values()),
            [(self.inputs, self.task.targets)],
            check_deterministic=False,
            seed=SEED,
            fisher_type="mc",
            num_per_example_loss_terms=1,
            num_data=len(self.inputs),
        )
        operator.compute_kronecker_factors()
        self._operator = operator

    def found(self) -> Found:
        """Return gradient and factors; a bias has the outputs' alone."""
        kfac: dict[str, Value] = {}
        for name in self.task.trained:
            layer, _, kind = name.rpartition(".")
            factors = [self._operator._gradient_covariances[layer]]
            if kind == "weight":
                factors.append(self._operator._input_covariances[layer])
            kfac[name] = factors
        return {**super().found(), self.task.field: kfac}

    def drop(self) -> None:
        """Forget both."""
        super().drop()
        self._operator = None
