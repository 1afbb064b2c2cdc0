"""A module of the user's own whose gradient and curvature a session computes."""

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from .errors import ParameterMismatch
from .types import CurvatureResult, ParameterSpec

if TYPE_CHECKING:
    from .session import RemoteSession


class Mirror:
    """Ties a module to a session: the weights live here, the arithmetic is done there.

    `loss(x, y).backward()` accumulates `p.grad` and sets `p.diag_ggn_mc` of the module's own
    parameters, as a local engine would. The weights are sent whenever they differ from what the
    session holds, and every request names the version that they became, so a gradient of other
    weights is an error (`StaleVersion`) and never a number. Only parameters are tied: buffers
    (running statistics, say) are the session's own.

    Attributes:
        session: the session that computes.
        net: the module.
        last: what the last `loss` got: loss, metrics, version, seed, samples and tensors.

    Example:
        >>> mirror = session.mirror(net)
        >>> optimizer = RemoteDiagGGNOptimizer(net.parameters(), lr=0.05, damping=1.0)
        >>> for x, y in loader:
        ...     optimizer.zero_grad()
        ...     mirror.loss(x, y).backward()
        ...     optimizer.step()
    """

    def __init__(self, session: "RemoteSession", net: nn.Module) -> None:
        """Compare the module with the session; its weights stay as they are.

        Args:
            session: the session that computes.
            net: a module whose parameters have the names, shapes and dtypes of the session's.

        Raises:
            ParameterMismatch: they have not.
        """
        self.session = session
        self.net = net
        self.last: CurvatureResult | None = None
        self._held: dict[str, Tensor] | None = None
        self._hold(session.pull(), session.version)

    def loss(self, inputs: Tensor, targets: Tensor) -> Tensor:
        """Return the loss of a batch, whose `backward` fills `p.grad` and `p.diag_ggn_mc`.

        `p.grad` accumulates, as ever; `p.diag_ggn_mc` is overwritten.

        Args:
            inputs: samples first, as the model's specification says.
            targets: one per sample.

        Returns:
            A 0-dim tensor on the module's device.

        Raises:
            StaleVersion: somebody else changed the session; `push` or `pull` to go on.
        """
        self._push_if_changed()
        self.last = self.session.curvature(inputs, targets, version=self._version)
        parameters = dict(self.net.named_parameters())
        loss: Tensor = _RemoteLoss.apply(self.last, list(parameters), *parameters.values())
        return loss

    def pull(self) -> None:
        """Load the session's weights into the module."""
        held = self.session.pull()
        self._hold(held, self.session.version)
        with torch.no_grad():
            for name, parameter in self.net.named_parameters():
                parameter.copy_(held[name])

    def push(self) -> int:
        """Replace the session's weights by the module's, whatever they are; return the version."""
        return self._push("*")

    def _push_if_changed(self) -> None:
        held = self._held
        if held is None or any(
            not torch.equal(parameter.detach().cpu(), held[name])
            for name, parameter in self.net.named_parameters()
        ):
            self._push(self._version)

    def _push(self, version: int | Literal["*"]) -> int:
        weights = {
            name: parameter.detach().to("cpu", copy=True)
            for name, parameter in self.net.named_parameters()
        }
        self._held = None  # not known until the answer is here
        version = self.session.push(weights, version=version)
        self._hold(weights, version)
        return version

    def _hold(self, tensors: dict[str, Tensor], version: int) -> None:
        _check_match(_specifications(self.net.named_parameters()), _specifications(tensors.items()))
        self._held, self._version = tensors, version


class _RemoteLoss(torch.autograd.Function):
    """A loss that was computed elsewhere, with its gradient at hand."""

    @staticmethod
    def forward(
        ctx: Any, result: CurvatureResult, names: list[str], *parameters: nn.Parameter
    ) -> Tensor:
        ctx.result, ctx.names, ctx.parameters = result, names, parameters
        return torch.tensor(result.loss, dtype=parameters[0].dtype, device=parameters[0].device)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.result is None:
            raise RuntimeError("backward was called before on this loss: call mirror.loss again")
        if upstream.item() != 1.0:
            raise RuntimeError(
                f"the loss was multiplied by {upstream.item():g} before backward; the curvature is "
                "of the loss as it was returned: call backward on it, and scale p.grad afterwards"
            )
        quantities, ctx.result = ctx.result.tensors, None  # a kept loss keeps no tensors
        named = list(zip(ctx.names, ctx.parameters, strict=True))
        for quantity in quantities.keys() - {"grad"}:
            for name, parameter in named:
                setattr(parameter, quantity, quantities[quantity][name].to(parameter.device))
        return None, None, *(quantities["grad"][name].to(p.device) for name, p in named)


def _specifications(tensors: Iterable[tuple[str, Tensor]]) -> dict[str, ParameterSpec]:
    return {name: ParameterSpec.of(tensor) for name, tensor in tensors}


def _check_match(local: Mapping[str, ParameterSpec], remote: Mapping[str, ParameterSpec]) -> None:
    differences = [f"{name} is missing in the module" for name in remote if name not in local]
    differences += [f"{name} is not in the session" for name in local if name not in remote]
    differences += [
        f"{name} is {_text(local[name])} here and {_text(remote[name])} there"
        for name in local
        if name in remote and local[name] != remote[name]
    ]
    if differences:
        raise ParameterMismatch("module and session differ: " + "; ".join(differences))


def _text(spec: ParameterSpec) -> str:
    return f"{spec.dtype} {list(spec.shape)}"
