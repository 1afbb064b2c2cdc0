"""A session of a server, for programs with an event loop."""

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any, Literal, Self, TypeVar

from torch import Tensor, nn

from .core import SessionCore
from .exchanges import Exchange, run_async
from .handles import RemoteParameter
from .mirror import QUANTITIES, AsyncMirror
from .protocol import Group, Reduction
from .scalars import Logger, ScalarWriter, recorder
from .session import given
from .tape import Tape
from .transport import AsyncTransport
from .types import (
    CheckpointSpec,
    CurvatureResult,
    EvaluateResult,
    ForwardBackwardResult,
    SessionInfo,
    StepResult,
)

T = TypeVar("T")


class AsyncRemoteSession:
    """A `RemoteSession` whose calls are awaited; each does what the one of the same name does.

    Made by `connect_async` and by `AsyncClient`. Changes from several tasks are made one after
    another. A task that is cancelled in the middle of a change leaves it to be settled by the next.

    Attributes:
        core: what is known of the session; no I/O.
        handles: parameter name -> what stands for it here.
        tape: the losses that wait for a step.

    Example:
        >>> async with await connect_async("http://gpu-host:8000", model="mnist_cnn") as session:
        ...     print((await session.step(x, y, lr=0.05)).loss)
    """

    def __init__(
        self,
        transport: AsyncTransport,
        info: SessionInfo,
        *,
        owner: bool = False,
        run: str | None = None,
        shared: bool = False,
    ) -> None:
        """Stand for a session; nothing is sent. See `RemoteSession`."""
        self.core = SessionCore(info, run, shared=shared)
        self.handles = {
            name: RemoteParameter(self, name, spec) for name, spec in info.parameters.items()
        }
        self.tape = Tape(self.core, self.handles)
        self._transport = transport
        self._owner = owner
        self._turn = asyncio.Lock()

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

    async def run(self, exchange: Exchange[T]) -> T:
        """Carry an exchange out, after those of other tasks."""
        async with self._turn:
            return await run_async(exchange, self._transport.send)

    async def info(self) -> SessionInfo:
        """Return the session as it is now, and go on from its version."""
        return await self.run(self.core.refresh())

    def parameters(self) -> list[RemoteParameter]:
        """Return the handle of each parameter, in the model's order; nothing is fetched."""
        return list(self.handles.values())

    def named_parameters(self) -> Iterator[tuple[str, RemoteParameter]]:
        """Yield name and handle of each parameter, in the model's order; nothing is fetched."""
        yield from self.handles.items()

    async def pull(self) -> dict[str, Tensor]:
        """Return the parameters as CPU tensors, by name."""
        return await self.run(self.core.pull())

    async def push(
        self, tensors: Mapping[str, Tensor], *, version: int | Literal["*"] | None = None
    ) -> int:
        """Replace all parameters; return the new version."""
        return await self.run(self.core.push(tensors, version))

    async def evaluate(self, inputs: Tensor, targets: Tensor) -> EvaluateResult:
        """Return loss and metrics of a batch; nothing is changed."""
        return await self.run(self.core.evaluate(inputs, targets))

    async def curvature(
        self,
        inputs: Tensor,
        targets: Tensor,
        quantities: Sequence[str] = QUANTITIES,
        mc_samples: int = 1,
        *,
        bfloat16: Sequence[str] = (),
        version: int | None = None,
    ) -> CurvatureResult:
        """Return quantities of a batch; nothing is changed."""
        return await self.run(
            self.core.curvature(inputs, targets, quantities, mc_samples, bfloat16, version)
        )

    async def step(
        self,
        inputs: Tensor,
        targets: Tensor,
        *,
        lr: float | None = None,
        damping: float | None = None,
        **options: float,
    ) -> StepResult:
        """Let the server take one step on a batch: compute and apply, or change nothing."""
        return await self.run(self.core.step(inputs, targets, given(lr, damping, options)))

    async def loss(self, inputs: Tensor, targets: Tensor) -> Tensor:
        """Return the loss of a batch, to call `backward` on; then `optimizer.step_async()`."""
        return await self.run(self.tape.loss(inputs, targets))

    async def forward_backward(
        self,
        inputs: Tensor,
        targets: Tensor,
        *,
        accumulate: bool = False,
        reduction: Reduction = "sum",
    ) -> ForwardBackwardResult:
        """Have gradient and curvature of a batch computed, and kept for `optim_step`."""
        return await self.run(
            self.core.forward_backward(inputs, targets, accumulate=accumulate, reduction=reduction)
        )

    async def optim_step(
        self,
        *,
        scales: Mapping[str, float] | None = None,
        groups: Sequence[Group] | None = None,
        **options: float,
    ) -> StepResult:
        """Take a step with what is pending."""
        return await self.run(self.core.optim_step(options, scales or {}, groups))

    async def joined_step(
        self, inputs: Tensor, targets: Tensor, *, clients: int, **options: float
    ) -> StepResult:
        """Take one step together with other clients of the session."""
        return await self.run(self.core.joined_step(inputs, targets, clients, options))

    async def mirror(
        self,
        net: nn.Module,
        quantities: Sequence[str] = QUANTITIES,
        *,
        mc_samples: int = 1,
        bfloat16: Sequence[str] = (),
    ) -> AsyncMirror:
        """Let this session compute gradient and curvature of a module of your own."""
        mirror = AsyncMirror(self, net, quantities, mc_samples=mc_samples, bfloat16=bfloat16)
        await self.run(mirror.compare_exchange())
        return mirror

    async def checkpoint(self, name: str, *, rule_state: bool = True) -> CheckpointSpec:
        """Keep the current version on the server, under a name, for good."""
        return await self.run(self.core.create_checkpoint(name, rule_state))

    async def checkpoints(self) -> list[CheckpointSpec]:
        """Return the session's checkpoints, the oldest first."""
        return await self.run(self.core.checkpoints())

    async def read_checkpoint(self, name: str) -> tuple[dict[str, Tensor], dict[str, str]]:
        """Return a checkpoint's tensors and metadata."""
        return await self.run(self.core.read_checkpoint(name))

    async def history(self, after: int = -1) -> list[Mapping[str, Any]]:
        """Return what the server remembers of the steps behind a version, the oldest first."""
        return await self.run(self.core.history(after))

    async def settle(self) -> StepResult | ForwardBackwardResult | int | None:
        """Find out what became of a change whose answer never came; it is made if it was not."""
        return await self.run(self.core.settle())

    async def close(self) -> None:
        """Close the connection, if this session was made by `connect_async`."""
        if self._owner:
            await self._transport.close()

    async def __aenter__(self) -> Self:
        """Return the session itself."""
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close the session's connection."""
        await self.close()

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
            f"AsyncRemoteSession({self.name!r}, model={self.model!r}, version={self.version}, "
            f"url={self._transport.link.address!r})"
        )
