"""A model as a chain of modules, for curvature that is defined by recursion over one.

Each module is run alone on its recorded input, and everything is had from its own vector-Jacobian
products: there is no code for any kind of module.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from curvserve.engine import context, layers
from curvserve.engine.double_backward import derivative, gradients, slopes
from curvserve.engine.errors import NotAChainError
from curvserve.engine.kernels import difference
from curvserve.engine.layers import LayerRule
from curvserve.engine.linearised import root
from curvserve.engine.plain import PlainOperations
from curvserve.engine.samples import Layout
from curvserve.engine.second_order import Pass

__all__ = ["Link", "links"]

_TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4}


@dataclass(eq=False)
class Link:
    """One module of a chain.

    Attributes:
        module: The module.
        input: What it was given, ``[N, ...]``.
        output: What it returned, ``[N, ...]``.
        gradient: The gradient of the loss with respect to its output.
    """

    module: nn.Module
    input: Tensor
    output: Tensor
    gradient: Tensor

    def pull(self, cotangents: Tensor) -> Tensor:
        """``J_n^T s_n`` with the Jacobian with respect to the input."""
        return self._derivatives(cotangents, self.input)

    def push(self, vectors: Tensor) -> Tensor:
        """``J_n v_n``, as the derivative of the transposed product."""
        return self._push(vectors, None)

    def push_parameter(self, name: str, vector: Tensor) -> Tensor:
        """``J_n v`` with the Jacobian with respect to a parameter."""
        return self._push(vector, name)

    def pull_parameter(self, name: str, cotangents: Tensor) -> Tensor:
        """``sum_n J_n^T s_n`` with the Jacobian with respect to a parameter."""
        parameter = self.module.get_parameter(name)
        with torch.enable_grad(), context.disable():
            (found,) = torch.autograd.grad(self._run(self.input), parameter, cotangents)
        return found

    def residual(self) -> Tensor | None:
        """The diagonal of ``d^2 <g, module(x)> / dx^2``, or None where it is zero.

        Raises:
            NotAChainError: It is not a diagonal matrix: the module is not elementwise.
            SecondDerivativeError: The module cannot be differentiated twice.
        """
        with torch.enable_grad(), context.disable():
            x = self.input.detach().requires_grad_()
            slope = slopes([self._run(x)], [x], [self.gradient])

        def product(vector: Tensor) -> Tensor:
            return derivative(slope, [x], [vector], [x])[0]

        generator = torch.Generator().manual_seed(0)
        probe = torch.randn(x.shape, generator=generator, dtype=torch.float64).to(x)
        together, diagonal = product(probe), product(torch.ones_like(x))
        if not bool(together.any()):
            return None
        limit = _TOLERANCE.get(x.dtype, 1e-2) * float(together.abs().max())
        if not float((diagonal * probe - together).abs().max()) <= limit:
            raise NotAChainError(
                f"{type(self.module).__name__} is neither linear nor elementwise in its input: "
                "its second derivative is not a diagonal, as this curvature needs"
            )
        return diagonal

    def rule(self) -> LayerRule | None:
        """The rule of the layer, if it has parameters that require gradients."""
        if not any(p.requires_grad for p in self.module.parameters()):
            return None
        return layers.find(self.module)

    def _run(self, x: Tensor) -> Tensor:
        # On a copy: the module may work in place.
        with PlainOperations():
            result: Tensor = self.module(x.clone())
        return result

    def _derivatives(self, cotangents: Tensor, at: Tensor) -> Tensor:
        with torch.enable_grad(), context.disable():
            x = at.detach().requires_grad_()
            (found,) = torch.autograd.grad(self._run(x), x, cotangents)
        return found

    def _push(self, vector: Tensor, name: str | None) -> Tensor:
        with torch.enable_grad(), context.disable():
            x = self.input.detach()  # indices, for an embedding
            place = x.requires_grad_() if name is None else self.module.get_parameter(name)
            dummy = torch.zeros_like(self.output, requires_grad=True)
            pulled = gradients([self._run(x)], [place], [dummy])
        return derivative(pulled, [dummy], [vector], [dummy])[0]


def links(at: Pass, extension: str) -> list[Link]:
    """The modules of the model of a pass, in forward order.

    Args:
        at: The pass.
        extension: Who asks, for errors.

    Raises:
        NotAChainError: The model is no ``nn.Sequential`` (of nested ones) of modules that are each
            called once, own their parameters alone and have a layer rule for them.
    """
    recorded, _ = root(at)
    call = recorded.call
    instead = "use KFAC or KFLR instead of KFRA and HBP, and GGNMP or HMP instead of PCHMP"

    def refuse(why: str) -> NotAChainError:
        return NotAChainError(
            f"{extension} is defined on a chain of modules only: {why}; {instead}"
        )

    if len(call.args) != 1 or call.kwargs or not isinstance(call.args[0], Tensor):
        raise refuse(f"{type(call.module).__name__} takes more than one tensor")
    if not call.unchanged():
        raise refuse("the model's input was modified in place since its forward pass")
    if at.plan.layout != Layout():
        raise refuse("the samples are not the first axis of the model's output")
    uses = [name for account in at.plan.accounts for name in account.names]
    if len(uses) != len(at.parameters()):
        raise refuse("a parameter is used more than once")
    made: list[Link] = []
    x: Tensor = call.args[0].detach()
    with torch.no_grad(), context.disable():
        for module in _flat(call.module):
            name = type(module).__name__
            trained = [p for p in module.parameters() if p.requires_grad]
            if trained and layers.find(module) is None:
                raise refuse(f"{name} is not a single layer with a rule")
            y = module(x.clone())
            if not isinstance(y, Tensor) or len(y) != at.plan.samples:
                raise refuse(f"{name} does not keep the samples on the first axis of one tensor")
            made.append(Link(module, x, y, y))
            x = y
    limit = difference(x) * float(at.loss.outputs.abs().max())
    if x.shape != at.loss.outputs.shape or not float((x - at.loss.outputs).abs().max()) <= limit:
        raise refuse(
            "run again module by module it gave another output than in its forward pass (dropout "
            "in training mode?)"
        )
    gradient = at.loss.gradient()
    for link in reversed(made):
        link.gradient = gradient
        gradient = link.pull(gradient) if link.input.is_floating_point() else gradient
    return made


def _flat(module: nn.Module) -> Iterator[nn.Module]:
    """The modules that nested Sequentials run one after the other."""
    if type(module).forward is nn.Sequential.forward and "forward" not in module.__dict__:
        for child in module.children():
            yield from _flat(child)
    else:
        yield module
