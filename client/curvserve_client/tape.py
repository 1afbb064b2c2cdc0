"""Losses that were computed on a server, and their backward: an ordinary loop, elsewhere."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .core import SessionCore
from .errors import NothingPending
from .exchanges import Exchange
from .handles import RemoteGradient, RemoteParameter
from .protocol import Group
from .types import ForwardBackwardResult, StepResult


@dataclass
class _Pass:
    """One loss: computed, and perhaps called backward on.

    Attributes:
        batch: inputs and targets.
        result: what the server told.
        added: whether its gradient was added to those before it.
        factor: what `backward` was called with.
    """

    batch: tuple[Tensor, Tensor]
    result: ForwardBackwardResult
    added: bool
    factor: float | None = None


@dataclass
class Tape:
    """What is pending on the server, as autograd sees it here.

    Attributes:
        core: the session.
        handles: parameter name -> what stands for it.
        passes: the losses since the last step whose gradients are pending, the oldest first.
    """

    core: SessionCore
    handles: Mapping[str, RemoteParameter]
    passes: list[_Pass] = field(default_factory=list)

    def loss(self, inputs: Tensor, targets: Tensor) -> Exchange[Tensor]:
        """See `RemoteSession.loss`."""
        dtype = getattr(torch, next(iter(self.core.info.parameters.values())).dtype)
        trained = [handle for handle in self.handles.values() if handle.requires_grad]
        if not torch.is_grad_enabled() or not trained:
            evaluated = yield from self.core.evaluate(inputs, targets)
            return torch.tensor(evaluated.loss, dtype=dtype)
        # a step has used up what was pending: zero_grad may come after this loss, or before it
        accumulate = bool(self.passes) and _holding(trained)
        if accumulate:
            self._check_accumulates()
        else:
            self.passes.clear()
        result = yield from self.core.forward_backward(
            inputs, targets, accumulate=accumulate, reduction="sum"
        )
        self.passes.append(_Pass((inputs, targets), result, accumulate))
        loss: Tensor = _RemoteLoss.apply(self, self.passes[-1], dtype, *trained)
        return loss

    def scales(self, trained: Sequence[RemoteParameter]) -> dict[str, float]:
        """Return what each gradient is to be multiplied by, as the handles say; 1 is left out.

        Args:
            trained: the handles that have a gradient.

        Raises:
            RuntimeError: there is no loss to step from, or one without its backward.
        """
        if not self.passes:
            raise RuntimeError(
                "nothing is pending: call session.loss(inputs, targets).backward() before step(), "
                "or step_on(inputs, targets) instead of it"
            )
        factor = self.passes[-1].factor
        if factor is None:
            raise RuntimeError(
                "a loss was computed and its backward not called: call backward() on it, or "
                "compute it under torch.no_grad()"
            )
        norms = self.passes[-1].result.grad_norms
        scales = {}
        for handle in trained:
            if not isinstance(handle.grad, RemoteGradient):
                raise RuntimeError(
                    f"the gradient of {handle.remote_name} was replaced by another tensor: the "
                    "remote one can only be multiplied, as in p.grad = p.grad * factor"
                )
            norm, found = norms[handle.remote_name], handle.grad.item()
            scale = factor if found == factor * norm or norm == 0 else found / norm
            if scale != 1:
                scales[handle.remote_name] = scale
        return scales

    def step(
        self,
        options: Mapping[str, float],
        scales: Mapping[str, float],
        groups: Sequence[Group] | None,
    ) -> Exchange[StepResult]:
        """Step with what is pending; where the server has lost it, send the batches again.

        Args:
            options: options of the rule to replace.
            scales: see `scales`.
            groups: groups of parameters with options of their own.
        """
        seen = self.passes[-1].result.version
        if seen != self.core.version:
            raise RuntimeError(
                f"the loss was computed at version {seen} and the session is at version "
                f"{self.core.version}: somebody else has changed it, so compute the loss again"
            )
        try:
            result = yield from self.core.optim_step(options, scales, groups)
        except NothingPending:  # lost with the server, or replaced by another client's
            for number, each in enumerate(self.passes):
                yield from self.core.forward_backward(
                    *each.batch, accumulate=number > 0, reduction="sum"
                )
            result = yield from self.core.optim_step(options, scales, groups)
        self.passes.clear()
        if groups is not None:
            stepped = {name for group in groups for name in group.parameters}
            for name in self.handles.keys() - stepped:
                self.handles[name].grad = None  # what it stood for is gone with the step
        return result

    def check_used(self) -> None:
        """Refuse to leave out a gradient that `backward` has put on the handles.

        Raises:
            RuntimeError: there is one that no step has taken.
        """
        if self.passes and _holding(self.handles.values()):
            raise RuntimeError(
                "backward() left gradients that no step has taken, and step_on(inputs, targets) "
                "computes its own: call step() instead of it, or zero_grad() before it"
            )

    def _check_accumulates(self) -> None:
        if not self.passes or len(self.core.batches) != len(self.passes):
            raise RuntimeError(
                "the gradients are of an earlier version of the parameters, and nothing can be "
                "added to them: call optimizer.zero_grad() before the next loss"
            )
        if self.passes[-1].factor is None:
            raise RuntimeError(
                "the loss before this one is pending and its backward was not called: call it, or "
                "compute that loss under torch.no_grad()"
            )


class _RemoteLoss(torch.autograd.Function):
    """A loss whose gradient stays on the server."""

    @staticmethod
    def forward(
        ctx: Any, tape: Tape, computed: _Pass, dtype: torch.dtype, *handles: RemoteParameter
    ) -> Tensor:
        ctx.tape, ctx.computed, ctx.handles = tape, computed, handles
        return torch.tensor(computed.result.loss, dtype=dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[None, ...]:
        tape, computed = ctx.tape, ctx.computed
        if computed.factor is not None:
            raise RuntimeError("backward was called before on this loss: call session.loss again")
        if not tape.passes or computed is not tape.passes[-1]:
            raise RuntimeError(
                "another loss was computed, or a step taken, since this one: call backward() on a "
                "loss before computing the next"
            )
        _check_seen(tape, computed, ctx.handles)
        computed.factor = upstream.item()
        factors = sorted({each.factor for each in tape.passes})
        if len(factors) > 1:
            raise RuntimeError(
                f"the losses of one step were multiplied by different factors, {factors}: their "
                "gradients are added on the server as they are; use one factor, or call "
                "session.forward_backward(..., reduction='mean') for a mean over samples"
            )
        for handle in ctx.handles:
            norm = computed.result.grad_norms[handle.remote_name]
            handle.grad = RemoteGradient.of(computed.factor * norm)
        return (None,) * (3 + len(ctx.handles))


def _holding(handles: Iterable[RemoteParameter]) -> bool:
    return any(handle.grad is not None and handle.grad.item() != 0 for handle in handles)


def _check_seen(tape: Tape, computed: _Pass, handles: Sequence[RemoteParameter]) -> None:
    """Refuse gradients on the handles that are not those which the server has added to."""
    holding = _holding(handles)
    if not computed.added:
        if holding:
            raise RuntimeError(
                "the gradients are of an earlier version of the parameters, and nothing can be "
                "added to them: call optimizer.zero_grad() before backward()"
            )
        return
    if not holding:
        raise RuntimeError(
            "the gradients that this loss was added to were dropped before its backward: call "
            "optimizer.zero_grad() before the loss, or only after a step"
        )
    before = tape.passes[-2]
    assert before.factor is not None  # see _check_accumulates
    for handle in handles:
        left = before.factor * before.result.grad_norms[handle.remote_name]
        if handle.grad is None or handle.grad.item() != left:
            raise RuntimeError(
                f"the gradient of {handle.remote_name} was changed between two losses of one "
                "step, and the server adds to what it has: clip or scale after the last backward()"
            )
