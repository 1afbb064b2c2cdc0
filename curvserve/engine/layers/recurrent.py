"""``nn.RNN``, ``nn.LSTM`` and ``nn.GRU``: the whole batch again, gate by gate.

Their fused kernels say nothing of what happens at the gates and cannot be batched by ``vmap``. So
the recurrence is written out, with the pre-activations of the gates as nodes of a graph: at these
the net is linear in its parameters, and the rows are sums over time of outer products.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrize

from curvserve.engine import context
from curvserve.engine.kernels import difference
from curvserve.engine.layers.generic import Replay
from curvserve.engine.recording import Call

__all__ = ["RecurrentReplay"]

KINDS = (nn.RNN, nn.LSTM, nn.GRU)


@dataclass(frozen=True)
class _Use:
    """One weight matrix with its bias, applied at every time step.

    Attributes:
        weight: The names of the matrix and of the bias, None without one.
        bias: See ``weight``.
        inputs: What it was applied to, ``[T, N, K]``.
        nodes: Its results, ``[T, N, O]`` as one tensor or one for each step.
    """

    weight: str
    bias: str | None
    inputs: Tensor
    nodes: list[Tensor]


@dataclass(frozen=True)
class _Unrolled:
    """The recurrence as a graph: its results, and all uses of its parameters."""

    results: list[Tensor]
    uses: list[_Use]


_unrolled: "WeakKeyDictionary[Call, _Unrolled]" = WeakKeyDictionary()


class RecurrentReplay(Replay):
    """Replays a recurrent net as a whole where it can, else as any other module."""

    def rows(self, call: Call, names: Sequence[str], cotangents: dict[int, Tensor]) -> list[Tensor]:
        """See the base class."""
        if not self._can(call):
            return super().rows(call, names, cotangents)
        made = self._unroll(call)
        nodes = [node for use in made.uses for node in use.nodes]
        arrived = torch.autograd.grad(
            [made.results[index] for index in cotangents],
            nodes,
            [s.to(made.results[index].dtype) for index, s in cotangents.items()],
            retain_graph=True,
            allow_unused=True,
        )
        gradients = iter(
            torch.zeros_like(n) if s is None else s for n, s in zip(nodes, arrived, strict=True)
        )
        rows: dict[str, Tensor] = {}
        for use in made.uses:
            own = [next(gradients) for _ in use.nodes]
            s = own[0] if own[0].dim() == 3 else torch.stack(own)
            if use.weight in names:
                rows[use.weight] = torch.einsum("tno,tnk->nok", s, use.inputs)
            if use.bias in names and use.bias is not None:
                rows[use.bias] = s.sum(0)
        return [rows[name] for name in names]

    def agrees(self, call: Call) -> bool:
        """See the base class."""
        if not self._can(call):
            return super().agrees(call)
        made = self._unroll(call)
        for index, layout in self.outputs.items():
            recorded = call.outputs[index]
            likely = self._axis(call, index)
            if layout.axis != likely or layout.outer * layout.inner != 1:
                return False
            error = float((made.results[index].detach() - recorded).abs().max())
            if not error <= difference(recorded) * float(recorded.abs().max()):
                return False
        return True

    def _can(self, call: Call) -> bool:
        module, x = call.module, call.tensors()[0]
        kind = next((k for k in KINDS if type(module) is k), None)
        if kind is None or "forward" in module.__dict__ or parametrize.is_parametrized(module):
            return False
        plain = isinstance(call.args[0], Tensor) and x.dim() == 3 and call.unchanged()
        return plain and not (module.training and getattr(module, "dropout", 0) > 0)

    def _axis(self, call: Call, index: int) -> int:
        """The batch axis of a result: the output's may be the first, that of a state is not."""
        return 0 if index == 0 and getattr(call.module, "batch_first", False) else 1

    def _unroll(self, call: Call) -> _Unrolled:
        made = _unrolled.get(call)
        if made is None:
            with context.disable(), torch.enable_grad():
                made = _unrolled[call] = _unroll(call.module, *_arguments(call))
        return made


def _arguments(call: Call) -> tuple[Tensor, Any]:
    given = dict(zip(("input", "hx"), call.args, strict=False)) | call.kwargs
    return given["input"], given.get("hx")


def _unroll(module: Any, x: Tensor, states: Any) -> _Unrolled:
    """Runs all layers and directions; parameters and inputs are constants of the graph."""
    if module.batch_first:
        x = x.transpose(0, 1)
    directions = 2 if module.bidirectional else 1
    layers = module.num_layers * directions
    initial = _initial(module, x, states, layers)
    uses: list[_Use] = []
    last: list[tuple[Tensor, ...]] = []
    for layer in range(module.num_layers):
        ways = []
        for direction in range(directions):
            suffix = f"l{layer}" + ("_reverse" if direction else "")
            own = tuple(state[len(last)] for state in initial)
            way = _Layer(module, suffix, uses)
            outputs, final = way.run(x.flip(0) if direction else x, own)
            ways.append(outputs.flip(0) if direction else outputs)
            last.append(final)
        x = torch.cat(ways, -1)
    output = x.transpose(0, 1) if module.batch_first else x
    return _Unrolled([output, *(torch.stack(s) for s in zip(*last, strict=True))], uses)


def _initial(module: Any, x: Tensor, states: Any, layers: int) -> list[Tensor]:
    if states is not None:
        return list(states) if isinstance(states, tuple) else [states]
    sizes = [getattr(module, "proj_size", 0) or module.hidden_size]
    if isinstance(module, nn.LSTM):
        sizes.append(module.hidden_size)
    return [x.new_zeros(layers, x.shape[1], size) for size in sizes]


class _Layer:
    """One layer in one direction."""

    def __init__(self, module: Any, suffix: str, uses: list[_Use]) -> None:
        self._module, self._suffix, self._uses = module, suffix, uses
        self._cell = {nn.RNN: self._rnn, nn.LSTM: self._lstm, nn.GRU: self._gru}[type(module)]

    def run(self, x: Tensor, states: tuple[Tensor, ...]) -> tuple[Tensor, tuple[Tensor, ...]]:
        """The outputs ``[T, N, H]`` and the final states."""
        into = _node(self._linear("ih", x))
        self._use("ih", x.detach(), [into])
        hidden, gates, outputs = [], [], []
        self._unprojected: list[Tensor] = []
        self._projected: list[Tensor] = []
        for step in into:
            hidden.append(states[0].detach())
            gates.append(_node(self._linear("hh", states[0])))
            states = self._cell(step, gates[-1], states)
            outputs.append(states[0])
        self._use("hh", torch.stack(hidden), gates)
        if self._projected:
            self._use("hr", torch.stack(self._unprojected), self._projected)
        return torch.stack(outputs), states

    def _name(self, kind: str, of: str) -> str:
        return f"{kind}_{of}_{self._suffix}"

    def _linear(self, of: str, x: Tensor) -> Tensor:
        weight = getattr(self._module, self._name("weight", of)).detach()
        bias = getattr(self._module, self._name("bias", of), None)
        return F.linear(x, weight, None if bias is None else bias.detach())

    def _use(self, of: str, inputs: Tensor, nodes: list[Tensor]) -> None:
        has_bias = self._module.bias and of != "hr"
        bias = self._name("bias", of) if has_bias else None
        self._uses.append(_Use(self._name("weight", of), bias, inputs, nodes))

    def _rnn(self, i: Tensor, h: Tensor, states: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return ((i + h).tanh() if self._module.nonlinearity == "tanh" else (i + h).relu(),)

    def _lstm(self, i: Tensor, h: Tensor, states: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        take, forget, new, give = (i + h).chunk(4, 1)
        cell = forget.sigmoid() * states[1] + take.sigmoid() * new.tanh()
        hidden = give.sigmoid() * cell.tanh()
        if self._module.proj_size:
            self._unprojected.append(hidden.detach())
            hidden = _node(self._linear("hr", hidden))
            self._projected.append(hidden)
        return hidden, cell

    def _gru(self, i: Tensor, h: Tensor, states: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        (ir, iz, new), (hr, hz, old) = i.chunk(3, 1), h.chunk(3, 1)
        reset, update = (ir + hr).sigmoid(), (iz + hz).sigmoid()
        candidate = (new + reset * old).tanh()
        return ((1 - update) * candidate + update * states[0],)


def _node(t: Tensor) -> Tensor:
    """The tensor as a node that derivatives can be taken with respect to."""
    return t if t.requires_grad else t.requires_grad_()
