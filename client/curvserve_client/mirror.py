"""A module of the user's own whose gradient and curvature a session computes."""

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from .core import SessionCore
from .errors import ParameterMismatch
from .exchanges import Exchange
from .types import CurvatureResult, ParameterSpec

if TYPE_CHECKING:
    from .async_session import AsyncRemoteSession
    from .session import RemoteSession

QUANTITIES = ("grad", "diag_ggn_mc")
"""What is asked for where nothing else is said."""


class MirrorCore:
    """A module tied to a session, without I/O; see `Mirror`.

    Attributes:
        net: the module.
        quantities: what `backward` fills.
        last: what the last `loss` got: loss, metrics, version, seed, samples and tensors.
    """

    def __init__(
        self,
        core: SessionCore,
        net: nn.Module,
        quantities: Sequence[str] = QUANTITIES,
        *,
        mc_samples: int = 1,
        bfloat16: Sequence[str] = (),
    ) -> None:
        """Tie a module to a session; see `RemoteSession.mirror`."""
        self.net = net
        self.quantities = tuple(dict.fromkeys(("grad", *quantities)))
        self.last: CurvatureResult | None = None
        self._core = core
        self._mc_samples = mc_samples
        self._bfloat16 = tuple(bfloat16)
        self._held: dict[str, Tensor] | None = None
        self._version = core.version

    def compare_exchange(self) -> Exchange[None]:
        """Fetch what the session holds, to know when the module's weights differ from it.

        Raises:
            ParameterMismatch: the module's parameters are not the session's.
        """
        self._hold((yield from self._core.pull()), self._core.version)

    def loss_exchange(self, inputs: Tensor, targets: Tensor) -> Exchange[Tensor]:
        """See `Mirror.loss`."""
        yield from self._push_if_changed()
        if not torch.is_grad_enabled():
            evaluated = yield from self._core.evaluate(inputs, targets)
            return self._tensor(evaluated.loss)
        self.last = yield from self._core.curvature(
            inputs, targets, self.quantities, self._mc_samples, self._bfloat16, self._version
        )
        parameters = dict(self.net.named_parameters())
        loss: Tensor = _RemoteLoss.apply(self.last, list(parameters), *parameters.values())
        return loss

    def pull_exchange(self) -> Exchange[None]:
        """See `Mirror.pull`."""
        held = yield from self._core.pull()
        self._hold(held, self._core.version)
        with torch.no_grad():
            for name, parameter in self.net.named_parameters():
                parameter.copy_(held[name])

    def push_exchange(self) -> Exchange[int]:
        """See `Mirror.push`."""
        return (yield from self._push("*"))

    def _push_if_changed(self) -> Exchange[None]:
        held = self._held
        if held is None or any(
            not torch.equal(parameter.detach().cpu(), held[name])
            for name, parameter in self.net.named_parameters()
        ):
            yield from self._push(self._version)

    def _push(self, version: int | Literal["*"]) -> Exchange[int]:
        weights = {
            name: parameter.detach().to("cpu", copy=True)
            for name, parameter in self.net.named_parameters()
        }
        self._held = None  # not known until the answer is here
        new = yield from self._core.push(weights, version)
        self._hold(weights, new)
        return new

    def _hold(self, tensors: dict[str, Tensor], version: int) -> None:
        _check_match(_specifications(self.net.named_parameters()), _specifications(tensors.items()))
        self._held, self._version = tensors, version

    def _tensor(self, loss: float) -> Tensor:
        return next(self.net.parameters()).new_tensor(loss)


class Mirror(MirrorCore):
    """Ties a module to a session: the weights live here, the arithmetic is done there.

    `loss(x, y).backward()` accumulates `p.grad` and sets `p.diag_ggn_mc` of the module's own
    parameters, as a local engine would. The weights are sent whenever they differ from what the
    session holds, and every request names the version that they became, so a gradient of other
    weights is an error (`StaleVersion`) and never a number. Only parameters are tied: buffers
    (running statistics, say) are the session's own.

    Attributes:
        session: the session that computes.
        net: the module.
        quantities: what `backward` fills.
        last: what the last `loss` got: loss, metrics, version, seed, samples and tensors.

    Example:
        >>> mirror = session.mirror(net)
        >>> optimizer = RemoteDiagGGNOptimizer(net.parameters(), lr=0.05, damping=1.0)
        >>> for x, y in loader:
        ...     optimizer.zero_grad()
        ...     mirror.loss(x, y).backward()
        ...     optimizer.step()
    """

    def __init__(
        self,
        session: "RemoteSession",
        net: nn.Module,
        quantities: Sequence[str] = QUANTITIES,
        *,
        mc_samples: int = 1,
        bfloat16: Sequence[str] = (),
    ) -> None:
        """Compare the module with the session; its weights stay as they are.

        Args:
            session: the session that computes.
            net: a module whose parameters have the names, shapes and dtypes of the session's.
            quantities: what `backward` fills; `grad` is always among it.
            mc_samples: Monte-Carlo draws per sample.
            bfloat16: those of the quantities that travel as bfloat16.

        Raises:
            ParameterMismatch: they have not.
        """
        super().__init__(session.core, net, quantities, mc_samples=mc_samples, bfloat16=bfloat16)
        self.session = session
        session.run(self.compare_exchange())

    def loss(self, inputs: Tensor, targets: Tensor) -> Tensor:
        """Return the loss of a batch, whose `backward` fills `p.grad` and `p.diag_ggn_mc`.

        `p.grad` accumulates, as ever; `p.diag_ggn_mc` is overwritten. A factor on the loss
        multiplies the gradient alone, so that GradScaler and accumulation keep their meaning: the
        curvature is that of the loss as it was computed. Under `torch.no_grad()` the loss alone is
        computed.

        Args:
            inputs: samples first, as the model's specification says.
            targets: one per sample.

        Returns:
            A 0-dim tensor on the module's device.

        Raises:
            StaleVersion: somebody else changed the session; `push` or `pull` to go on.
        """
        return self.session.run(self.loss_exchange(inputs, targets))

    def pull(self) -> None:
        """Load the session's weights into the module."""
        self.session.run(self.pull_exchange())

    def push(self) -> int:
        """Replace the session's weights by the module's, whatever they are; return the version."""
        return self.session.run(self.push_exchange())


class AsyncMirror(MirrorCore):
    """Ties a module to a session without blocking the event loop; see `Mirror`.

    Made by `AsyncRemoteSession.mirror`.
    """

    def __init__(
        self,
        session: "AsyncRemoteSession",
        net: nn.Module,
        quantities: Sequence[str] = QUANTITIES,
        *,
        mc_samples: int = 1,
        bfloat16: Sequence[str] = (),
    ) -> None:
        """Tie a module to a session; `AsyncRemoteSession.mirror` compares them."""
        super().__init__(session.core, net, quantities, mc_samples=mc_samples, bfloat16=bfloat16)
        self.session = session

    async def loss(self, inputs: Tensor, targets: Tensor) -> Tensor:
        """Return the loss of a batch; see `Mirror.loss`."""
        return await self.session.run(self.loss_exchange(inputs, targets))

    async def pull(self) -> None:
        """Load the session's weights into the module."""
        await self.session.run(self.pull_exchange())

    async def push(self) -> int:
        """Replace the session's weights by the module's; return the version."""
        return await self.session.run(self.push_exchange())


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
        quantities, ctx.result = ctx.result.tensors, None  # a kept loss keeps no tensors
        factor = upstream.item()
        named = list(zip(ctx.names, ctx.parameters, strict=True))
        for quantity in quantities.keys() - {"grad"}:
            for name, parameter in named:
                found = quantities[quantity][name]
                setattr(parameter, quantity, found.to(parameter.device, parameter.dtype))
        gradients = (quantities["grad"][name].to(p.device, p.dtype) for name, p in named)
        return None, None, *(g if factor == 1 else g * factor for g in gradients)


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
