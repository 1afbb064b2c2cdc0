"""Opacus: gradients per sample, made for differential privacy."""

from torch import nn

from ..case import Task
from .base import Found, OnParameters


class Opacus(OnParameters):
    """`GradSampleModule`; its rows are those of the sum, so they are divided by N to compare."""

    name = "opacus"
    package = "opacus"
    quantities = frozenset({"BatchGrad"})

    def __init__(self, task: Task) -> None:
        """Wrap the net."""
        from opacus import GradSampleModule

        super().__init__(task)
        self.net: nn.Module = GradSampleModule(task.net).train()  # it computes in no other mode

    @classmethod
    def cannot(cls, task: Task) -> str:
        """It takes neither buffers nor torch's attention, and dropout would draw."""
        if any(True for _ in task.net.buffers()):
            return "it takes no buffers, those of norms for one"
        if any(isinstance(m, nn.MultiheadAttention) for m in task.net.modules()):
            return "it has an attention of its own in place of torch's"
        if any(isinstance(m, nn.modules.dropout._DropoutNd) for m in task.net.modules()):
            return "it computes in training mode alone, where dropout draws"
        return ""

    def run(self) -> None:
        """Do one pass; the rows of the last one would be added to."""
        for p in self.net.parameters():
            vars(p)["grad_sample"] = None
        super().run()

    def found(self) -> Found:
        """Return gradient and rows, under the names of the net itself."""
        named = self.task.trained
        rows = {n: vars(p)["grad_sample"] / len(self.inputs) for n, p in named.items()}
        gradients = {n: p.grad for n, p in named.items() if p.grad is not None}
        return {"grad": gradients, self.task.field: rows}

    def drop(self) -> None:
        """Delete both."""
        super().drop()
        for p in self.net.parameters():
            vars(p)["grad_sample"] = None
