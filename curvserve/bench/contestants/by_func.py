"""torch.func: what torch itself offers for gradients per sample."""

import torch
from torch import Tensor
from torch.func import functional_call, vjp, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from ..case import Task
from .base import Found, OnParameters
from .columns import QUANTITIES, columns, refusal

ROOM = 2**24
"""Numbers that the rows of one chunk may have: 64 MB."""


class TorchFunc(OnParameters):
    """`vmap` over the samples of `vmap` over the columns of a `vjp`, in chunks, then squared."""

    name = "torch.func"
    quantities = QUANTITIES

    def __init__(self, task: Task) -> None:
        """Keep the parameters as a mapping, and the size of a chunk."""
        super().__init__(task)
        self._parameters = {name: p.detach() for name, p in task.trained.items()}
        self._count = sum(p.numel() for p in self._parameters.values())
        self._quantity: dict[str, Tensor] = {}
        self._rows = vmap(self._rows_of_sample, in_dims=(0, 1))

    @classmethod
    def cannot(cls, task: Task) -> str:
        """Its columns are written out."""
        return refusal(task)

    def run(self) -> None:
        """Do one pass: the gradient as ever, then the rows."""
        self.net.zero_grad()
        outputs = self.net(self.inputs)
        self.loss(outputs, self.task.targets).backward()
        back = columns(outputs, self.task)
        whole = self.task.quantity == "BatchGrad"  # all rows are kept: nothing is gained by chunks
        size = len(self.inputs) if whole else max(1, ROOM // (self._count * len(back)))
        self._quantity = {}
        # the fused kernel of attention has no rule for vmap, and would go sample by sample
        with torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
            for chunk in zip(self.inputs.split(size), back.split(size, 1), strict=True):
                self._add(self._rows(*chunk))

    def found(self) -> Found:
        """Return gradient and quantity."""
        return {**super().found(), self.task.field: self._quantity}

    def drop(self) -> None:
        """Forget both."""
        super().drop()
        self._quantity = {}

    def _rows_of_sample(self, x: Tensor, back: Tensor) -> dict[str, Tensor]:
        """Return each column's product with the Jacobian of one sample, `[V, *p.shape]`."""

        def outputs(parameters: dict[str, Tensor]) -> Tensor:
            result: Tensor = functional_call(self.net, parameters, (x.unsqueeze(0),))
            return result.squeeze(0)

        pull = vjp(outputs, self._parameters)[1]
        rows: dict[str, Tensor] = vmap(pull)(back)[0]
        return rows

    def _add(self, rows: dict[str, Tensor]) -> None:
        """Take a chunk's rows, `[n, V, *p.shape]`, or add up their squares."""
        for name, row in rows.items():
            if self.task.quantity == "BatchGrad":
                self._quantity[name] = row.squeeze(1)
            elif name in self._quantity:
                self._quantity[name] += row.square_().sum((0, 1))
            else:
                self._quantity[name] = row.square_().sum((0, 1))
