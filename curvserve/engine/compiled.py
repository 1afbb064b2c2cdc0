"""Evaluations of batches of the same shape as one flat program of tensor operations.

Of a small net's pass, hooks, the reading of the graph and autograd's own bookkeeping are a fifth.
All of it depends on shapes alone. So it is done once, while torch writes down the operations that
it sets off, and later batches go through these operations only: the same ones on the same values,
hence with the same bits.
"""

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule
from torch.utils._pytree import TreeSpec, tree_flatten, tree_leaves, tree_unflatten

from curvserve.engine.cuda_graphs import Captured, CudaGraphs, Recorder, obstacle
from curvserve.engine.draws import GivenDraws, GlobalDraws, Numbers, SeededDraws
from curvserve.engine.evaluate import Evaluation, Part, evaluate_with, resolve
from curvserve.engine.losses import Draws
from curvserve.engine.programs import ALL, Operations, Sharing, Straight, Way, layout, written_down
from curvserve.engine.quantities import Quantity
from curvserve.engine.rewriting import shortened
from curvserve.engine.share import Split

__all__ = ["Evaluator"]

_EAGER_CALLS = 8
"""Of a shape, before a program is made: that takes about as long as a hundred small passes."""

_SHAPES_KEPT = 16

_aten = torch.ops.aten
_DRAWING = (_aten.multinomial.default, _aten.binomial.default, _aten.bernoulli.default)

Asked = Mapping[str, Quantity | None]


class Evaluator:
    """:func:`curvserve.engine.evaluate` for one model and loss, again and again.

    The first calls with a batch of one shape are eager. Then a program is made on one batch, and
    held against the eager pass on the next, bit by bit. From then on it runs alone, which takes a
    fifth less time for small nets and the same for large ones. Where that fails, and wherever
    Python has to look at values, calls stay eager, and :meth:`refusals` says why.

    On a GPU the program becomes a CUDA graph, or is run operation by operation where it cannot,
    and :meth:`obstacles` says why. Its memory is kept for the next batch. An eager pass has other
    bits each time there, and no program could be held against it, unless both are inside
    :func:`curvserve.engine.reproducible`.

    The model may get other values (``parameter.data = ...``), mode and ``requires_grad`` between
    calls, not other layers or options. For one thread at a time.

    Example:
        >>> evaluator = Evaluator(model, nn.CrossEntropyLoss())
        >>> found = evaluator(inputs, targets, ["grad", "diag_ggn_mc"], seed=0)
    """

    def __init__(self, model: nn.Module, loss: nn.Module, eager_calls: int = _EAGER_CALLS) -> None:
        """Prepares; nothing is computed.

        Args:
            model: The model.
            loss: A loss module with a curvature rule.
            eager_calls: How many calls with a shape come before its program; one at least, which
                shows what is drawn.

        Raises:
            ValueError: ``eager_calls`` is less than one.
        """
        if eager_calls < 1:
            raise ValueError(f"eager_calls must be 1 or more, got {eager_calls}")
        self._model, self._loss, self._eager_calls = model, loss, eager_calls
        self._modules, self._parameters = list(model.modules()), list(model.parameters())
        self._programs: dict[Hashable, _Program] = {}
        self._recorders = recorders()

    def __call__(
        self,
        inputs: Tensor,
        targets: Tensor,
        quantities: Sequence[str | Quantity],
        *,
        seed: int | None = None,
        mc_samples: int = 1,
        part: Part | None = None,
    ) -> Evaluation:
        """Computes the loss of a batch together with quantities of its parameters.

        Arguments, result and errors are those of :func:`curvserve.engine.evaluate`; with a
        ``part`` those of :func:`curvserve.engine.evaluate_part`.
        """
        asked = resolve(quantities, mc_samples)
        program = self._program(inputs, targets, asked, part, seeded=seed is not None)
        program.calls += 1
        if program.refusal or program.calls <= self._eager_calls:
            return program.eager(inputs, targets, seed)
        if program.operations is None:
            return program.made(inputs, targets, seed)
        try:
            found = program.run(inputs, targets, seed)
        except RuntimeError:
            if seed is not None:
                raise
            # torch's own generator draws no class from what is NaN; this says where that is
            return program.eager(inputs, targets, seed)
        if found is None:
            return program.compared(inputs, targets, seed)
        if not bool(torch.isfinite(found.outputs).all()):
            return program.eager(inputs, targets, seed)  # which says what is wrong
        return found

    def compiled(self) -> int:
        """How many shapes have a program."""
        return sum(bool(program.verified) for program in self._known())

    def refusals(self) -> list[str]:
        """Why shapes that might have had a program have none, each reason once."""
        return list(dict.fromkeys(p.refusal for p in self._known() if p.refusal))

    def captured(self) -> int:
        """How many of them are CUDA graphs."""
        return sum(bool(p.verified) and isinstance(p.operations, Captured) for p in self._known())

    def obstacles(self) -> list[str]:
        """Why programs on a GPU are none, each reason once."""
        return list(dict.fromkeys(p.obstacle for p in self._known() if p.obstacle))

    def _known(self) -> list["_Program"]:
        return list(self._programs.values())  # another thread may ask while one begins

    def _program(
        self, inputs: Tensor, targets: Tensor, asked: Asked, part: Part | None, *, seeded: bool
    ) -> "_Program":
        key = (
            seeded,
            part,
            layout(inputs),
            layout(targets),
            tuple((name, repr(quantity)) for name, quantity in asked.items()),
            tuple(module.training for module in self._modules),
            tuple((*layout(p), p.requires_grad) for p in self._parameters),
            torch.is_autocast_enabled(inputs.device.type),
            torch.get_autocast_dtype(inputs.device.type),
        )
        if key not in self._programs:
            if len(self._programs) >= _SHAPES_KEPT:
                del self._programs[next(iter(self._programs))]
            recorder = self._recorders.get(inputs.device.type)
            self._programs[key] = _Program(self._model, self._loss, asked, part, recorder)
        return self._programs[key]


def recorders() -> dict[str, Recorder]:
    """What records programs on which kind of device."""
    return {"cuda": CudaGraphs()}


@dataclass
class _Program:
    """What is known of the evaluations of one shape.

    Attributes:
        asked: The quantities.
        part: Where the samples stand in a larger batch, if they do.
        recorder: What the device can run a program by without Python, if anything.
        calls: How many there were.
        drawn: The random numbers that each takes.
        lines: The number of lines of the output that have draws of their own.
        operations: The program, once it is made.
        spec: What its results are.
        verified: The ways through it that were held against an eager pass.
        refusal: Why there will be none.
        obstacle: Why the recorder does not take the program.
    """

    model: nn.Module
    loss: nn.Module
    asked: Asked
    part: Part | None = None
    recorder: Recorder | None = None
    calls: int = 0
    drawn: list[Numbers] = field(default_factory=list)
    lines: int = 0
    operations: Operations | None = None
    spec: TreeSpec | None = None
    verified: set[Way] = field(default_factory=set)
    refusal: str | None = None
    obstacle: str = ""

    def eager(self, inputs: Tensor, targets: Tensor, seed: int | None) -> Evaluation:
        """Evaluates, and notes what is drawn."""

        def draws(total: int, offset: int) -> Draws:
            if seed is None:
                return GlobalDraws()
            made = SeededDraws(seed, total, offset)
            self.drawn, self.lines = made.taken, total
            return made

        return evaluate_with(
            self.model, self.loss, inputs, targets, self.asked, draws, part=self.part
        )

    def run(self, inputs: Tensor, targets: Tensor, seed: int | None) -> Evaluation | None:
        """Evaluates by the program; None if it goes a way that has not been verified."""
        assert self.operations is not None
        before = torch.get_rng_state() if seed is None else None
        found: Evaluation | None = None
        try:
            way, rest = self._begun(inputs, targets, seed)
            if way in self.verified:
                found = rest()
        finally:
            if found is None and before is not None:
                torch.set_rng_state(before)
        return found

    def made(self, inputs: Tensor, targets: Tensor, seed: int | None) -> Evaluation:
        """Evaluates eagerly, then makes the program; whatever that changes is put back."""
        with self._undone():
            try:
                self._make(inputs, targets, seed)
            except Exception as error:  # anything can come of running a model symbolically
                self.refusal = _reason(error)
        return self.eager(inputs, targets, seed)

    def compared(self, inputs: Tensor, targets: Tensor, seed: int | None) -> Evaluation:
        """Evaluates eagerly, and by the program to see whether that gives the same bits."""
        own: list[Tensor] = []
        way: Way = ALL
        with self._undone():
            try:
                way, rest = self._begun(inputs, targets, seed)
                if (ran := rest()) is None:
                    raise ValueError("some samples alone had other outputs than in their batch")
                own = [*_leaves(ran), *_copies(self.model)]
            except Exception as error:  # it holds only for the batch that it was made on
                self.refusal = _reason(error)
        found = self.eager(inputs, targets, seed)
        wanted = [*_leaves(found), *self.model.buffers()]
        if not self.refusal and all(map(_same, own, wanted)):
            self.verified.add(way)
        else:
            self.refusal = self.refusal or _mismatch(inputs.device)
            self.operations = None
        return found

    def _begun(
        self, inputs: Tensor, targets: Tensor, seed: int | None
    ) -> tuple[Way, Callable[[], Evaluation | None]]:
        """The way that the program goes for a batch, and what goes on to the end."""
        assert self.operations is not None
        with torch.no_grad():
            way, rest = self.operations.begin(inputs, targets, *self._numbers(seed, inputs))

        def go_on() -> Evaluation | None:
            assert self.spec is not None
            with torch.no_grad():
                leaves = rest()
            return None if leaves is None else Evaluation(*tree_unflatten(leaves, self.spec))

        return way, go_on

    def _make(self, inputs: Tensor, targets: Tensor, seed: int | None) -> None:
        numbers, seeded = self._numbers(seed, inputs), seed is not None
        split = Split("all")
        whole = written_down(self._flat(split, seeded=seeded), inputs, targets, *numbers)
        if not seeded and inputs.device.type != "cpu" and _asserts(whole):
            raise ValueError("a GPU that draws classes of NaN stops for good: give a seed")
        if split.shared is None:
            self.operations = self._one_way(shortened(whole), [inputs, targets, *numbers])
            return
        parting = self._flat(Split("hits"), seeded=seeded)
        hits = written_down(parting, inputs, targets, *numbers)
        assert self.spec is not None
        *_, places = tree_unflatten(list(range(self.spec.num_leaves)), self.spec)
        shared = places[split.shared.quantity.savefield]
        self.operations = Sharing(self.model, whole, hits, shared, alone=split.shared.alone)

    def _one_way(self, program: GraphModule, arguments: Sequence[Tensor]) -> Operations:
        if self.recorder is not None:
            self.obstacle = obstacle(program, self.model, arguments)
            try:
                if not self.obstacle:
                    return Captured(program, arguments, self.recorder)
            except Exception as error:  # whatever a library has to say while it is recorded
                self.obstacle = _reason(error)
        return Straight(program)

    def _flat(self, split: Split, *, seeded: bool) -> Callable[..., list[Tensor]]:
        """The evaluation as a function of tensors, which returns what is looked at last."""

        def flat(x: Tensor, y: Tensor, *given: Tensor) -> list[Tensor]:
            def draws(total: int, offset: int) -> Draws:
                return GivenDraws(total, given, offset) if seeded else GlobalDraws()

            found = evaluate_with(
                self.model, self.loss, x, y, self.asked, draws, split=split, part=self.part
            )
            leaves, self.spec = tree_flatten((found.loss, found.outputs, found.quantities))
            if any(not isinstance(leaf, Tensor) for leaf in leaves):
                raise TypeError("a result is not a tensor")
            shared = split.shared
            return leaves + ([found.outputs, shared.column, shared.weights] if shared else [])

        return flat

    def _numbers(self, seed: int | None, inputs: Tensor) -> list[Tensor]:
        if seed is None:
            return []
        draws = SeededDraws(seed, self.lines)
        return [draws.numbers(*numbers).to(inputs.device) for numbers in self.drawn]

    @contextmanager
    def _undone(self) -> Iterator[None]:
        """A block that leaves the buffers and the global generators as they were."""
        before = _copies(self.model)
        cuda = {p.device for p in self.model.parameters() if p.device.type == "cuda"}
        with torch.random.fork_rng(list(cuda)):
            yield
        with torch.no_grad():
            for buffer, value in zip(self.model.buffers(), before, strict=True):
                buffer.copy_(value)


def _asserts(program: GraphModule) -> bool:
    """Whether a program draws by what trusts that it is given probabilities."""
    find = program.graph.find_nodes
    return any(find(op="call_function", target=operation) for operation in _DRAWING)


def _mismatch(device: torch.device) -> str:
    reason = "the program gave other numbers than the eager pass"
    if device.type == "cpu" or torch.get_deterministic_debug_mode():
        return reason
    return f"{reason}, which has others each time: see curvserve.engine.reproducible"


def _reason(error: Exception) -> str:
    text = str(error).partition("\n")[0]
    if "_local_scalar_dense" in text:
        return "Python looks at a value, in the model, the loss or a quantity"
    return f"{type(error).__name__}: {text}"


def _same(own: Tensor, wanted: Tensor) -> bool:
    """Whether two tensors hold the same numbers; all of them may be NaN."""
    return own.shape == wanted.shape and torch.allclose(own, wanted, 0, 0, equal_nan=True)


def _leaves(found: Evaluation) -> list[Any]:
    return tree_leaves((found.loss, found.outputs, found.quantities))


def _copies(model: nn.Module) -> list[Tensor]:
    return [buffer.detach().clone() for buffer in model.buffers()]
