"""``extend``: makes a model and a loss ready for ``with backpack(...)``."""

import logging
from collections.abc import Iterator
from functools import partial
from inspect import signature
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge
from torch.utils._pytree import tree_leaves

from curvserve.engine import context, losses
from curvserve.engine.accounts import watch
from curvserve.engine.backward import Backward, ReachedLoss
from curvserve.engine.errors import UnsupportedLossError
from curvserve.engine.recording import calls_ending_at, record_module

__all__ = ["extend"]

log = logging.getLogger("curvserve.engine")

ModuleT = TypeVar("ModuleT", bound=nn.Module)


def extend(module: ModuleT, debug: bool = False, use_converter: bool = False) -> ModuleT:
    """Makes a model, or a loss module, ready for ``with backpack(...)``.

    Forward passes are recorded from then on wherever gradients are enabled; nothing else about
    the module changes. Extending twice does nothing more. What is made of the gradients of the
    samples needs only the model extended: the loss may be any function, and the samples are the
    first axis of the model's output.

    Args:
        module: The model or the loss; for curvature both must be extended.
        debug: Log what is extended (logger ``curvserve.engine``).
        use_converter: Accepted for BackPACK's sake; any architecture is taken as it is.

    Returns:
        The same module.

    Raises:
        TypeError: ``module`` is not a module.
        UnsupportedLossError: It is a loss of torch whose curvature is not known.
    """
    if not isinstance(module, nn.Module):
        raise TypeError(f"extend takes a torch.nn.Module, got {type(module).__name__}")
    inner = list(_losses(module))
    for loss in inner:
        if losses.find(loss) is None:
            raise UnsupportedLossError(losses.refusal(loss))
        if _after_loss not in loss._forward_hooks.values():
            loss.register_forward_hook(_after_loss, with_kwargs=True)
    if not inner and _after_model not in module._forward_hooks.values():
        module.register_forward_hook(_after_model)
    record_module(module)
    watch(module)
    if debug:
        log.info("extended %s", type(module).__name__)
    return module


def _losses(module: nn.Module) -> Iterator[nn.Module]:
    """The losses in a module; those that another loss is made of are a part of it."""
    if losses.is_loss(module):
        yield module
    else:
        for child in module.children():
            yield from _losses(child)


def _after_loss(
    module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], loss: Tensor
) -> None:
    """Lets the loss call back when backward reaches it.

    The hook must not hold the loss itself: that would be a cycle through the graph.
    """
    if not torch.is_grad_enabled() or not context.recording() or loss.grad_fn is None:
        return
    outputs, *rest = signature(module.forward).bind(*args, **kwargs).arguments.values()
    if outputs.grad_fn is None:
        return
    answers = [r.detach() if isinstance(r, Tensor) else r for r in rest]
    rule = losses.find(module)
    assert rule is not None
    reached = ReachedLoss(
        module,
        rule,
        GradientEdge(outputs.grad_fn, outputs.output_nr),
        outputs.detach(),
        answers[0] if len(answers) == 1 else tuple(answers),
        moving=any(isinstance(r, Tensor) and r.requires_grad for r in rest),
    )
    loss.register_hook(partial(_loss_reached, reached))


def _after_model(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
    """Lets the results of a model call back when backward reaches them.

    The hook holds no tensor and no node: either would be a cycle through the graph.
    """
    if not torch.is_grad_enabled() or torch.compiler.is_compiling() or not context.recording():
        return
    for result in tree_leaves(output):
        if isinstance(result, Tensor) and result.grad_fn is not None:
            result.register_hook(partial(_output_reached, result.output_nr))


def _loss_reached(reached: ReachedLoss, gradient: Tensor) -> None:
    request = context.current()
    if request is not None and not context.computing():
        Backward.current(request).at_loss(reached, gradient)


def _output_reached(number: int, gradient: Tensor) -> None:
    if context.computing():
        return
    request, node = context.current(), torch._C._current_autograd_node()
    if request is not None and gradient.dim() > 0:
        Backward.current(request).at_output(GradientEdge(node, number), gradient)
    if torch.is_grad_enabled():
        for call, _, _ in calls_ending_at(node):
            call.differentiated = True
