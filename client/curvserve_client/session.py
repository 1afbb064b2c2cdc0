"""A session of a server: training state that lives elsewhere."""

import uuid
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Literal, Self

from torch import Tensor, nn

from . import protocol
from .handles import RemoteParameter
from .mirror import Mirror
from .transport import Transport
from .types import CurvatureResult, EvaluateResult, SessionInfo, StepResult

QUANTITIES = ("grad", "diag_ggn_mc")
"""What is asked for where nothing else is said."""


class RemoteSession:
    """Parameters, rule state and seed of one model, kept by a server.

    Made by `connect` and by `Client`. Use it in a `with` block, or `close` it. Every call raises a
    `CurvserveError` where it fails: one class per code of the server's, `ConnectionFailed`,
    `DeadlinePassed`, `ProtocolError`.

    Example:
        >>> with connect("http://gpu-host:8000", model="mnist_cnn") as session:
        ...     print(session.step(x, y, lr=0.05).loss)
    """

    def __init__(self, transport: Transport, info: SessionInfo, *, owner: bool = False) -> None:
        """Stand for a session; nothing is sent.

        Args:
            transport: the way to its server.
            info: the session as it was last seen.
            owner: whether `close` closes the transport.
        """
        self._transport = transport
        self._info = info
        self._version = info.version
        self._owner = owner

    @property
    def name(self) -> str:
        """The session's name."""
        return self._info.name

    @property
    def model(self) -> str:
        """The name of the session's model."""
        return self._info.model

    @property
    def version(self) -> int:
        """The version that was last seen; what `step` and `push` start from."""
        return self._version

    def info(self) -> SessionInfo:
        """Return the session as it is now, and go on from its version."""
        self._info = self._transport.send(protocol.get_session(self.name))
        self._version = self._info.version
        return self._info

    def parameters(self) -> list[RemoteParameter]:
        """Return one handle per parameter, in the model's order; nothing is fetched."""
        return [RemoteParameter(self, name, spec) for name, spec in self._info.parameters.items()]

    def pull(self) -> dict[str, Tensor]:
        """Return the parameters as CPU tensors, by name."""
        tensors, self._version = self._transport.send(protocol.get_parameters(self.name))
        return tensors

    def push(
        self, tensors: Mapping[str, Tensor], *, version: int | Literal["*"] | None = None
    ) -> int:
        """Replace all parameters.

        Args:
            tensors: parameter name -> tensor of its shape and dtype, on any device.
            version: the version to replace; None for the one last seen, "*" for whatever is there.

        Returns:
            The new version.

        Raises:
            StaleVersion: somebody else changed the session meanwhile.
        """
        replaced = self._version if version is None else version
        request = protocol.put_parameters(self.name, tensors, replaced, _new_key())
        self._version = self._transport.send(request)
        return self._version

    def evaluate(self, inputs: Tensor, targets: Tensor) -> EvaluateResult:
        """Return loss and metrics of a batch; nothing is changed.

        Args:
            inputs: samples first, as the model's specification says.
            targets: one per sample.
        """
        result = self._transport.send(protocol.evaluate(self.name, inputs, targets))
        self._version = result.version
        return result

    def curvature(
        self,
        inputs: Tensor,
        targets: Tensor,
        quantities: Sequence[str] = QUANTITIES,
        mc_samples: int = 1,
        *,
        version: int | None = None,
    ) -> CurvatureResult:
        """Return quantities of a batch; nothing is changed.

        Args:
            inputs: samples first, as the model's specification says.
            targets: one per sample.
            quantities: what to compute, of the model's `quantities`.
            mc_samples: Monte-Carlo draws per sample.
            version: answer for this version of the parameters or not at all.

        Raises:
            StaleVersion: the parameters have another version than asked for.
            UnknownQuantity: the model does not serve one of the quantities.
        """
        request = protocol.curvature(self.name, inputs, targets, quantities, mc_samples, version)
        result = self._transport.send(request)
        self._version = result.version
        return result

    def step(
        self,
        inputs: Tensor,
        targets: Tensor,
        *,
        lr: float | None = None,
        damping: float | None = None,
        **options: float,
    ) -> StepResult:
        """Let the server take one step on a batch: compute and apply, or change nothing.

        Args:
            inputs: samples first, as the model's specification says.
            targets: one per sample.
            lr: step size of this step; None for the session's own.
            damping: damping of this step; None for the session's own.
            options: other options of the session's rule, for this step.

        Raises:
            InvalidRule: the rule has no such option, or it is out of its range.
            StaleVersion: somebody else changed the session meanwhile.
            NonFinite: loss, gradient, curvature or new parameters are not finite.
        """
        given = {"lr": lr, "damping": damping, **options}
        replaced = {name: value for name, value in given.items() if value is not None}
        request = protocol.step(self.name, inputs, targets, replaced, self._version, _new_key())
        result = self._transport.send(request)
        self._version = result.version
        return result

    def mirror(self, net: nn.Module) -> Mirror:
        """Let this session compute gradient and curvature of a module of your own.

        Args:
            net: a module whose parameters have the names, shapes and dtypes of the session's.

        Raises:
            ParameterMismatch: they have not.
        """
        return Mirror(self, net)

    def close(self) -> None:
        """Close the connection, if this session was made by `connect`; the server keeps it."""
        if self._owner:
            self._transport.close()

    def __enter__(self) -> Self:
        """Return the session itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close the session's connection."""
        self.close()

    def __repr__(self) -> str:
        """Say which session it is, and where."""
        return (
            f"RemoteSession({self.name!r}, model={self.model!r}, version={self.version}, "
            f"url={self._transport.address!r})"
        )


def _new_key() -> str:
    return uuid.uuid4().hex
