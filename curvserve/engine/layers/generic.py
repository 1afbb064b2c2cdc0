"""The rule for every module that has none of its own: replay it sample by sample.

One ``vmap`` over the samples of the module's vector-Jacobian product. It serves modules that are
taken whole (attention, recurrent nets, parametrised modules), parameters that a container uses
itself, and anything a user writes. Exact wherever the module treats its samples one by one.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call, vjp, vmap
from torch.utils._pytree import tree_flatten, tree_leaves, tree_unflatten

from curvserve.engine import context
from curvserve.engine.errors import ReplayError
from curvserve.engine.kernels import batchable, difference
from curvserve.engine.recording import Call
from curvserve.engine.samples import Layout, candidates

__all__ = ["Replay", "replay"]


@dataclass(frozen=True, eq=False)
class Replay:
    """How one call is cut into samples.

    Attributes:
        inputs: For each tensor among the arguments its layout, None if all samples share it.
        outputs: For the index of each result in the graph its layout.
        samples: The number of samples.
    """

    inputs: tuple[Layout | None, ...]
    outputs: dict[int, Layout]
    samples: int

    def rows(self, call: Call, names: Sequence[str], cotangents: dict[int, Tensor]) -> list[Tensor]:
        """The per-sample rows of several parameters of the called module.

        Args:
            call: The call.
            names: The parameters, by their names in the module.
            cotangents: The cotangents of its results, by the index of the result.

        Returns:
            A tensor ``[N, *p]`` for each name.

        Raises:
            ReplayError: The replay does not give the recorded output.
        """
        seeds = {
            index: self.outputs[index].samples_first(s, self.samples)
            for index, s in cotangents.items()
        }
        results, rows = self._run(call, names, seeds)
        self._compare(call, results)
        return rows

    def agrees(self, call: Call) -> bool:
        """Whether a replay with these layouts gives the recorded outputs."""
        try:
            results, _ = self._run(call, (), {})
            self._compare(call, results)
        except torch.OutOfMemoryError:
            raise  # says nothing about how the arguments are cut
        except Exception:  # anyone's forward may raise anything on wrongly cut arguments
            return False
        return True

    def _run(
        self, call: Call, names: Sequence[str], seeds: dict[int, Tensor]
    ) -> tuple[dict[int, Tensor], list[Tensor]]:
        tensors = call.tensors()
        sliced = [
            t if layout is None else layout.samples_first(t, self.samples)
            for t, layout in zip(tensors, self.inputs, strict=True)
        ]
        axes = [None if layout is None else 0 for layout in self.inputs]
        state = {name: p.detach() for name, p in call.module.named_parameters()}
        state |= {name: b.clone() for name, b in call.module.named_buffers()}

        def one(*flat: Tensor) -> tuple[dict[int, Tensor], list[Tensor]]:
            inputs, seed = flat[: len(sliced)], dict(zip(seeds, flat[len(sliced) :], strict=True))

            def forward(parameters: dict[str, Tensor]) -> dict[int, Tensor]:
                return self._forward(call, state | parameters, inputs)

            outputs, pull, *_ = vjp(forward, {name: state[name] for name in names})
            filled = {i: seed.get(i, torch.zeros_like(o)) for i, o in outputs.items()}
            gradients = pull(filled)[0] if names else {}
            return outputs, [gradients[name] for name in names]

        with context.disable(), torch.no_grad(), batchable():
            return _over_samples(one, (*sliced, *seeds.values()), (*axes, *([0] * len(seeds))))

    def _forward(
        self, call: Call, state: dict[str, Tensor], inputs: Sequence[Tensor]
    ) -> dict[int, Tensor]:
        """The results of the module for one sample, each without its sample axis."""
        whole = [
            t if layout is None else layout.one_sample(t)
            for t, layout in zip(inputs, self.inputs, strict=True)
        ]
        args, kwargs = _with_tensors(call, whole)
        results = tree_leaves(functional_call(call.module, state, args, kwargs))
        tensors = [t for t in results if isinstance(t, Tensor)]
        return {
            index: layout.samples_first(tensors[index], 1)[0]
            for index, layout in self.outputs.items()
        }

    def _compare(self, call: Call, results: dict[int, Tensor]) -> None:
        if not call.unchanged():
            return  # modified in place since: nothing left to compare with
        for index, result in results.items():
            recorded = self.outputs[index].samples_first(call.outputs[index], self.samples)
            limit = difference(recorded) * recorded.abs().max()
            if not context.holds((result - recorded).abs().max() <= limit):
                raise ReplayError(
                    f"{type(call.module).__name__} gave another output when replayed sample by "
                    "sample than in its forward pass: it draws random numbers (dropout in "
                    "training mode?), changes its own state, or does not treat samples one by one"
                )


def replay(
    call: Call, outputs: dict[int, Layout], samples: int, kind: type[Replay] = Replay
) -> Replay | None:
    """Finds how the arguments of a call are cut into samples.

    Each tensor may lie like the output, along any axis of the right size, or be shared; the first
    combination whose replay gives the recorded output is taken.

    Args:
        call: The call.
        outputs: The layouts of its results.
        samples: The number of samples.
        kind: What to make; a subclass may know better how to replay its kind of module.

    Returns:
        The way to replay it, or None if there is none.
    """
    if not call.unchanged():
        return None
    likely = next(iter(outputs.values()))
    options = [list(_guesses(t, likely, samples)) for t in call.tensors()]
    for inputs in product(*options):
        attempt = kind(tuple(inputs), outputs, samples)
        if attempt.agrees(call):
            return attempt
    return None


def _guesses(tensor: Tensor, likely: Layout, samples: int) -> Iterator[Layout | None]:
    possible = list(candidates(tensor.shape, samples))
    yield from sorted(possible, key=lambda layout: layout != likely)
    yield None


def _with_tensors(call: Call, tensors: Sequence[Tensor]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments of the call with other tensors in the places of the recorded ones."""
    leaves, structure = tree_flatten((call.args, call.kwargs))
    replacements = iter(tensors)
    filled = [next(replacements) if isinstance(leaf, Tensor) else leaf for leaf in leaves]
    args, kwargs = tree_unflatten(filled, structure)
    return args, kwargs


def _over_samples(
    one: Callable[..., tuple[dict[int, Tensor], list[Tensor]]],
    arguments: Sequence[Tensor],
    axes: Sequence[int | None],
) -> tuple[dict[int, Tensor], list[Tensor]]:
    """Maps over the samples: by vmap, or one by one where an operation cannot be batched.

    What fails for another reason than vmap fails again, and says so, one by one.
    """
    try:
        mapped: tuple[dict[int, Tensor], list[Tensor]] = vmap(one, in_dims=tuple(axes))(*arguments)
        return mapped
    except RuntimeError:
        pass
    samples = next(len(t) for t, axis in zip(arguments, axes, strict=True) if axis == 0)
    pieces = [
        one(*(t if axis is None else t[n] for t, axis in zip(arguments, axes, strict=True)))
        for n in range(samples)
    ]
    outputs = {index: torch.stack([piece[0][index] for piece in pieces]) for index in pieces[0][0]}
    rows = [torch.stack(parts) for parts in zip(*(piece[1] for piece in pieces), strict=True)]
    return outputs, rows
