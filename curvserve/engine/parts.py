"""The share that each call of a module has in the rows of the parameters it accounts for."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from curvserve.engine.graph import Graph, RecordedCall
from curvserve.engine.layers import LayerRule
from curvserve.engine.layers.affine import OfLines
from curvserve.engine.layers.generic import Replay
from curvserve.engine.plan import Account, Plan
from curvserve.engine.recording import Call
from curvserve.engine.rows import Matrices, Part

__all__ = ["RulePart", "along", "arranged", "gather", "parts"]


@dataclass(frozen=True)
class RulePart:
    """A part of the rows that the rule of a layer kind forms.

    Attributes:
        rule: The rule.
        module: The layer.
        name: The parameter's name in it.
        a: The layer's input, samples first.
        s: The cotangent at its output, samples first.
    """

    rule: LayerRule
    module: nn.Module
    name: str
    a: Tensor
    s: Tensor

    def rows(self, samples: Tensor | None) -> Tensor:
        """See :class:`curvserve.engine.rows.Part`."""
        a, s = (self.a, self.s) if samples is None else (self.a[samples], self.s[samples])
        return self.rule.rows(self.module, self.name, a, s)

    def square_sum(self, others: Sequence[Part] = ()) -> Tensor:
        """See :class:`curvserve.engine.rows.Part`."""
        if not others:
            return self.rule.square_sum(self.module, self.name, self.a, self.s)
        columns = [self.s, *(other.s for other in others if isinstance(other, RulePart))]
        return self.rule.square_sums(self.module, self.name, self.a, columns)

    def matrices(self) -> Matrices | None:
        """See :class:`curvserve.engine.rows.Part`."""
        return self.rule.matrices(self.module, self.name, self.a, self.s)

    def weighted(self, weights: Tensor) -> Part:
        """See :class:`curvserve.engine.rows.Part`."""
        return replace(self, s=self.s * along(weights, self.s))

    def lines(self) -> range | None:
        """See :class:`curvserve.engine.rows.Part`."""
        return self.rule.of(self.name) if isinstance(self.rule, OfLines) else None


@dataclass
class _Replayed:
    """The rows of all parameters that one replayed call accounts for, formed together."""

    way: Replay
    call: Call
    names: tuple[str, ...]
    cotangents: dict[int, Tensor]
    _rows: dict[str, Tensor] = field(default_factory=dict)

    def __getitem__(self, name: str) -> Tensor:
        if not self._rows:
            rows = self.way.rows(self.call, self.names, self.cotangents)
            self._rows = dict(zip(self.names, rows, strict=True))
        return self._rows[name]


@dataclass(frozen=True)
class _ReplayPart:
    """A part of the rows that replaying a call forms."""

    replayed: _Replayed
    name: str
    weights: Tensor | None = None

    def rows(self, samples: Tensor | None) -> Tensor:
        rows = self.replayed[self.name]
        if self.weights is not None:
            rows = rows * along(self.weights, rows)
        return rows if samples is None else rows[samples]

    def square_sum(self, others: Sequence[Part] = ()) -> Tensor:
        total = self.rows(None).square().sum(0)
        for other in others:
            total = total + other.square_sum()
        return total

    def matrices(self) -> Matrices | None:
        return None

    def weighted(self, weights: Tensor) -> Part:
        return replace(self, weights=weights)

    def lines(self) -> range | None:
        return None


def along(weights: Tensor, rows: Tensor) -> Tensor:
    """Numbers of samples ``[N]``, to be multiplied by what has the samples first."""
    return weights.to(rows.dtype).reshape(-1, *[1] * (rows.dim() - 1))


def parts(
    account: Account, recorded: RecordedCall, cotangents: dict[int, Tensor], samples: int
) -> dict[Tensor, Part]:
    """The parts that a call has in the rows of the parameters that it accounts for.

    Args:
        account: What the call accounts for, and how.
        recorded: The call.
        cotangents: Those at its results, by the index of the result; none if nothing arrived.
        samples: The number N of samples.
    """
    call = recorded.call
    parameters = {name: call.module.get_parameter(name) for name in account.names}
    if not cotangents:
        return {}
    if isinstance(account.way, Replay):
        own = {i: s for i, s in cotangents.items() if i in account.way.outputs}
        if not own:
            return {}
        replayed = _Replayed(account.way, call, account.names, own)
        return {p: _ReplayPart(replayed, name) for name, p in parameters.items()}
    a, s = arranged(account, call, cotangents[0], samples)
    return {p: RulePart(account.way, call.module, name, a, s) for name, p in parameters.items()}


def arranged(
    account: Account, call: Call, cotangent: Tensor, samples: int
) -> tuple[Tensor, Tensor]:
    """The input and the cotangent of a call with a rule, as the rule wants them."""
    rule = account.way
    assert isinstance(rule, LayerRule)
    a, s = rule.input(call.module, call.args, call.kwargs), cotangent
    # Under autocast both may be rougher than the parameter: squares are summed in its type.
    dtype = torch.promote_types(s.dtype, call.module.get_parameter(account.names[0]).dtype)
    s, a = s.to(dtype), a.to(dtype) if a.is_floating_point() else a
    return (
        rule.arranged(a, account.layout, samples),
        rule.arranged(s, account.layout, samples),
    )


def gather(
    plan: Plan, graph: Graph, cotangents: dict[RecordedCall, dict[int, Tensor]]
) -> dict[Tensor, list[Part]]:
    """The parts of each parameter, over all calls that account for it."""
    gathered: dict[Tensor, list[Part]] = {}
    for account in plan.accounts:
        recorded = graph.calls[account.call]
        for name in account.names:
            gathered.setdefault(recorded.call.module.get_parameter(name), [])
        own = parts(account, recorded, cotangents[recorded], plan.samples)
        for parameter, part in own.items():
            gathered[parameter].append(part)
    return gathered
