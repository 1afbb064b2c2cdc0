"""A session of a server: training state that lives elsewhere."""

import threading
from collections.abc import Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any, Literal, Self, TypeVar

from torch import Tensor, nn

from .core import SessionCore
from .exchanges import Exchange, run
from .handles import RemoteParameter
from .messages import Request
from .mirror import QUANTITIES, Mirror
from .module import RemoteModule
from .pipeline import Pipeline
from .protocol import Group, Reduction
from .scalars import Logger, ScalarWriter, recorder
from .tape import Tape
from .transport import Transport
from .types import (
    CheckpointSpec,
    CurvatureResult,
    EvaluateResult,
    ForwardBackwardResult,
    SessionInfo,
    StepResult,
)

T = TypeVar("T")


class RemoteSession:
    """Parameters, rule state and seed of one model, kept by a server.

    Made by `connect` and by `Client`. Use it in a `with` block, or `close` it. Every call raises a
    `CurvserveError` where it fails: one class per code of the server's, `ConnectionFailed`,
    `DeadlinePassed`, `ProtocolError`.

    A change is made once. Where no answer to it came (the connection broke for good, the deadline
    passed, the caller was interrupted) the same call again is its retry; any other change first
    has it settled, so that it is made before the next one begins.

    Several threads may use a session; their changes are made one after another.

    Attributes:
        core: what is known of the session; no I/O.
        handles: parameter name -> what stands for it here.
        tape: the losses that wait for a step.

    Example:
        >>> with connect("http://gpu-host:8000", model="mnist_cnn") as session:
        ...     print(session.step(x, y, lr=0.05).loss)
    """

    def __init__(
        self,
        transport: Transport,
        info: SessionInfo,
        *,
        owner: bool = False,
        run: str | None = None,
        shared: bool = False,
    ) -> None:
        """Stand for a session; nothing is sent.

        Args:
            transport: the way to its server.
            info: the session as it was last seen.
            owner: whether `close` closes the transport.
            run: see `connect`.
            shared: see `connect`.
        """
        self._begin(transport, SessionCore(info, run, shared=shared), owner)

    def _begin(self, transport: Transport, core: SessionCore, owner: bool) -> None:
        self.core = core
        self.handles = {
            name: RemoteParameter(self, name, spec) for name, spec in core.info.parameters.items()
        }
        self.tape = Tape(core, self.handles)
        self._transport = transport
        self._owner = owner
        self._lock = threading.RLock()

    @property
    def name(self) -> str:
        """The session's name."""
        return self.core.name

    @property
    def model(self) -> str:
        """The name of the session's model."""
        return self.core.info.model

    @property
    def version(self) -> int:
        """The version that was last seen; what the next change starts from."""
        return self.core.version

    def run(self, exchange: Exchange[T]) -> T:
        """Carry an exchange out, after those of other threads."""
        with self._lock:
            return run(exchange, self._transport.send)

    def info(self) -> SessionInfo:
        """Return the session as it is now, and go on from its version."""
        return self.run(self.core.refresh())

    def parameters(self) -> list[RemoteParameter]:
        """Return the handle of each parameter, in the model's order; nothing is fetched."""
        return list(self.handles.values())

    def named_parameters(self) -> Iterator[tuple[str, RemoteParameter]]:
        """Yield name and handle of each parameter, in the model's order; nothing is fetched."""
        yield from self.handles.items()

    def module(self) -> RemoteModule:
        """Return a module with these parameters, whose result is the loss; for trainers."""
        return RemoteModule(self)

    def pull(self) -> dict[str, Tensor]:
        """Return the parameters as CPU tensors, by name."""
        return self.run(self.core.pull())

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
        return self.run(self.core.push(tensors, version))

    def evaluate(self, inputs: Tensor, targets: Tensor) -> EvaluateResult:
        """Return loss and metrics of a batch; nothing is changed.

        Args:
            inputs: samples first, as the model's specification says.
            targets: one per sample.
        """
        return self.run(self.core.evaluate(inputs, targets))

    def curvature(
        self,
        inputs: Tensor,
        targets: Tensor,
        quantities: Sequence[str] = QUANTITIES,
        mc_samples: int = 1,
        *,
        bfloat16: Sequence[str] = (),
        version: int | None = None,
    ) -> CurvatureResult:
        """Return quantities of a batch; nothing is changed.

        Args:
            inputs: samples first, as the model's specification says.
            targets: one per sample.
            quantities: what to compute, of the model's `quantities`.
            mc_samples: Monte-Carlo draws per sample.
            bfloat16: those of the quantities that are sent as bfloat16: half the bytes, 8 bits of
                mantissa.
            version: answer for this version of the parameters or not at all.

        Raises:
            StaleVersion: the parameters have another version than asked for.
            UnknownQuantity: the model does not serve one of the quantities.
        """
        return self.run(
            self.core.curvature(inputs, targets, quantities, mc_samples, bfloat16, version)
        )

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
        return self.run(self.core.step(inputs, targets, given(lr, damping, options)))

    def loss(self, inputs: Tensor, targets: Tensor) -> Tensor:
        """Return the loss of a batch, to call `backward` on: an ordinary loop, elsewhere.

        One request. Gradient and curvature are computed at once and stay on the server; `backward`
        puts the norm of each gradient on its handle, and the optimizer's `step` has the server
        take the step. Without `zero_grad` between two losses their gradients add, and the
        curvature is the mean over their samples. A factor on the loss multiplies the gradient
        alone. Under `torch.no_grad()` the loss alone is computed.

        Args:
            inputs: samples first, as the model's specification says.
            targets: one per sample.

        Returns:
            A 0-dim tensor.

        Raises:
            RuntimeError: the handles have gradients of an earlier version, or the backward of the
                loss before was left out.
        """
        return self.run(self.tape.loss(inputs, targets))

    def forward_backward(
        self,
        inputs: Tensor,
        targets: Tensor,
        *,
        accumulate: bool = False,
        reduction: Reduction = "sum",
    ) -> ForwardBackwardResult:
        """Have gradient and curvature of a batch computed, and kept for `optim_step`.

        Args:
            inputs: samples first, as the model's specification says.
            targets: one per sample.
            accumulate: join with what is pending; otherwise that is dropped.
            reduction: how the gradients join: "sum" as `backward` adds, "mean" over all samples as
                if all batches were one. Curvature is always the mean.
        """
        return self.run(
            self.core.forward_backward(inputs, targets, accumulate=accumulate, reduction=reduction)
        )

    def optim_step(
        self,
        *,
        scales: Mapping[str, float] | None = None,
        groups: Sequence[Group] | None = None,
        **options: float,
    ) -> StepResult:
        """Take a step with the batches that this client's `forward_backward` left pending.

        Args:
            scales: parameter name -> what its gradient is multiplied by; 1 where it is absent.
            groups: groups of parameters with options of their own; a parameter of none stays as
                it is. None for all alike.
            options: options of the session's rule, for this step.

        Raises:
            NothingPending: they are not, after a restart of the server or another client's calls:
                send them again.
            ProblemError: as `step`.
        """
        return self.run(self.core.optim_step(options, scales or {}, groups))

    def joined_step(
        self, inputs: Tensor, targets: Tensor, *, clients: int, **options: float
    ) -> StepResult:
        """Take one step together with other clients of the session, each with a part of the batch.

        The server joins the parts, gradient and curvature weighted by the number of samples, and
        steps once all are there: one version, whose result every client gets. All must be at the
        same version and give the same options. With a `run` of its own (see `connect`) a client
        that starts again counts once.

        Args:
            inputs: this client's samples.
            targets: one per sample.
            clients: how many take part.
            options: options of the session's rule, for this step.

        Raises:
            NothingPending: the others' parts did not come within the timeout, or there were more.
            ProblemError: as `step`.
        """
        return self.run(self.core.joined_step(inputs, targets, clients, options))

    def pipeline(self, window: int = 2) -> Pipeline:
        """Return what sends the next steps before the answer to the first is here.

        Args:
            window: how many steps may be under way.
        """
        return Pipeline(self, window)

    def send_ahead(self, request: Request[StepResult]) -> StepResult:
        """Carry out one of several steps under way; for `Pipeline`."""
        return run(self.core.carry_out(request), self._transport.send)

    def mirror(
        self,
        net: nn.Module,
        quantities: Sequence[str] = QUANTITIES,
        *,
        mc_samples: int = 1,
        bfloat16: Sequence[str] = (),
    ) -> Mirror:
        """Let this session compute gradient and curvature of a module of your own.

        Args:
            net: a module whose parameters have the names, shapes and dtypes of the session's.
            quantities: what `backward` fills; `grad` is always among it.
            mc_samples: Monte-Carlo draws per sample.
            bfloat16: those of the quantities that travel as bfloat16.

        Raises:
            ParameterMismatch: they have not.
        """
        return Mirror(self, net, quantities, mc_samples=mc_samples, bfloat16=bfloat16)

    def checkpoint(self, name: str, *, rule_state: bool = True) -> CheckpointSpec:
        """Keep the current version on the server, under a name, for good.

        Args:
            name: 1 to 64 letters, digits, '.', '-', '_', a letter or digit first.
            rule_state: whether what the rule remembers is kept too.

        Raises:
            CheckpointExists: another version has this name.
        """
        return self.run(self.core.create_checkpoint(name, rule_state))

    def checkpoints(self) -> list[CheckpointSpec]:
        """Return the session's checkpoints, the oldest first."""
        return self.run(self.core.checkpoints())

    def read_checkpoint(self, name: str) -> tuple[dict[str, Tensor], dict[str, str]]:
        """Return a checkpoint's tensors and metadata.

        Args:
            name: the checkpoint's name.

        Returns:
            `parameters.<name>`, `buffers.<name>` and `rule.<slot>.<name>` -> CPU tensor, and what
            the file says of version, seed, rule and options.

        Raises:
            UnknownCheckpoint: there is none of this name.
        """
        return self.run(self.core.read_checkpoint(name))

    def history(self, after: int = -1) -> list[Mapping[str, Any]]:
        """Return what the server remembers of the steps behind a version, the oldest first.

        Args:
            after: the version.
        """
        return self.run(self.core.history(after))

    def settle(self) -> StepResult | ForwardBackwardResult | int | None:
        """Find out what became of a change whose answer never came; it is made if it was not.

        Every change does so first, unless it asks for the same.

        Returns:
            The change's result; None where there is no such change, or it was refused.
        """
        found: StepResult | ForwardBackwardResult | int | None = self.run(self.core.settle())
        return found

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

    def __deepcopy__(self, memo: dict[int, object]) -> Self:
        """Return the session itself: there is one on the server."""
        return self

    def __getstate__(self) -> dict[str, Any]:
        """Return what finds the session again: no socket, no key, no `http` of the caller's."""
        link, core = self._transport.link, self.core
        return {
            "url": link.address,
            "timeout": link.timeout,
            "info": core.info,
            "version": core.version,
            "run": core.run,
            "shared": core.shared,
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Stand for the session again; nothing is sent."""
        core = SessionCore(state["info"], state["run"], shared=state["shared"])
        core.version = state["version"]
        self._begin(Transport(state["url"], state["timeout"]), core, True)

    def log_to(self, writer: ScalarWriter | Logger, prefix: str = "") -> None:
        """Hand loss, metrics and what the rule tells of each step to a writer from now on.

        Args:
            writer: has `add_scalar(tag, value, step)` as TensorBoard's, or `log(numbers, step=...)`
                as that of Weights & Biases; the step is the version.
            prefix: put before every name.

        Raises:
            TypeError: it has neither.
        """
        self.core.listeners.append(recorder(writer, prefix))

    def _repr_html_(self) -> str:
        """Return the session as a notebook shows it."""
        return self.core.as_html()

    def __repr__(self) -> str:
        """Say which session it is, and where."""
        return (
            f"RemoteSession({self.name!r}, model={self.model!r}, version={self.version}, "
            f"url={self._transport.link.address!r})"
        )


def given(
    lr: float | None, damping: float | None, options: Mapping[str, float]
) -> dict[str, float]:
    """Return the options of a step that are not left to the session."""
    named = {"lr": lr, "damping": damping, **options}
    return {name: value for name, value in named.items() if value is not None}
