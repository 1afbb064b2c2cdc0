"""One sample after the other, by plain autograd: a reference that shares no code with anybody."""

import torch
from torch import Tensor

from ..case import Task
from .base import Found, OnParameters
from .columns import QUANTITIES, columns, refusal


class Loop(OnParameters):
    """`autograd.grad` of every column of every sample; too slow to be timed."""

    name = "loop"
    quantities = QUANTITIES

    def __init__(self, task: Task) -> None:
        """Take the net as it is."""
        super().__init__(task)
        self._quantity: dict[str, Tensor] = {}

    @classmethod
    def cannot(cls, task: Task) -> str:
        """Its columns are written out."""
        return refusal(task)

    def run(self) -> None:
        """Do one pass."""
        super().run()
        named = self.task.trained
        back = columns(self.net(self.inputs), self.task)  # one draw for the whole batch
        rows: list[list[list[Tensor]]] = []  # [N][V][parameter]
        for n, x in enumerate(self.inputs.split(1)):
            outputs = self.net(x)
            pulled = [
                torch.autograd.grad(outputs, list(named.values()), v, retain_graph=True)
                for v in back[:, n : n + 1]
            ]
            rows.append([list(row) for row in pulled])
        for i, name in enumerate(named):
            whole = torch.stack([torch.stack([row[i] for row in sample]) for sample in rows])
            mean = self.task.quantity == "BatchGrad"
            self._quantity[name] = whole[:, 0] if mean else whole.square().sum((0, 1))

    def found(self) -> Found:
        """Return gradient and quantity."""
        return {**super().found(), self.task.field: self._quantity}
