"""A session's side of the contract, without I/O: versions, keys, and changes without an answer.

Every call is an `Exchange`; `RemoteSession` carries it out blocking, `AsyncRemoteSession` awaiting.
"""

import hashlib
import logging
import math
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeVar

from torch import Tensor

from . import protocol
from .display import html_table
from .errors import InFlight, NothingPending, ProblemError, StorageFailed
from .exchanges import Exchange
from .messages import Request
from .protocol import Group, Reduction, Version
from .types import (
    CheckpointSpec,
    CurvatureResult,
    EvaluateResult,
    ForwardBackwardResult,
    SessionInfo,
    StepResult,
)

log = logging.getLogger("curvserve_client")

T = TypeVar("T")

Scales = Mapping[str, float]


@dataclass(frozen=True)
class _Unanswered:
    """A change of which it is not known whether it was made.

    Attributes:
        request: the change, its body copied.
        digest: of what it asks for.
    """

    request: Request[Any]
    digest: bytes


class SessionCore:
    """What is known of a session, and what is to be said to its server.

    A change names the version that it starts from and an idempotency key made of `run`, that
    version and a count. Where no answer comes (the connection broke, the deadline passed, the
    caller was interrupted) the change is kept. The next change, if it asks for the same, is its
    retry, with the same key; if not, the kept one is sent again first, so that it is made once
    before the next one begins.

    Attributes:
        info: the session as it was last seen.
        version: the version that was last seen; what the next change starts from.
        batches: the keys of the batches of this client that are pending.
        run: what the idempotency keys begin with.
        shared: whether changes start from whatever version there is.
        listeners: called with the result of each step.
    """

    def __init__(self, info: SessionInfo, run: str | None = None, *, shared: bool = False) -> None:
        """Begin with a session as it was seen.

        Args:
            info: the session.
            run: a name of this training run; None for one that is nobody else's.
            shared: name no version in changes, because others change the session too.
        """
        self.info = info
        self.version = info.version
        self.batches: list[str] = []
        self.run = run or uuid.uuid4().hex
        self.shared = shared
        self.listeners: list[Callable[[StepResult], None]] = []
        self._unanswered: list[_Unanswered] = []
        self._failures = 0

    @property
    def name(self) -> str:
        """The session's name."""
        return self.info.name

    def as_html(self) -> str:
        """Return the session as a notebook shows it, as it was last seen."""
        info = self.info
        count = sum(math.prod(spec.shape) for spec in info.parameters.values())
        options = ", ".join(f"{name}={value}" for name, value in info.options.items())
        rows = {
            "model": info.model,
            "version": self.version,
            "durable": "no" if info.durable_version is None else info.durability,
            "rule": f"{info.rule}({options})",
            "parameters": f"{count:,} in {len(info.parameters)} tensors",
            "since": info.created,
        }
        return html_table(f"session {self.name}", rows)

    def go_on_from(self, version: int) -> None:
        """Let the next change start from a version, whatever was seen last."""
        self._saw(version)

    def refresh(self) -> Exchange[SessionInfo]:
        """See `RemoteSession.info`."""
        self.info = yield protocol.get_session(self.name)
        self._saw(self.info.version)
        return self.info

    def pull(self) -> Exchange[dict[str, Tensor]]:
        """See `RemoteSession.pull`."""
        found: tuple[dict[str, Tensor], int] = yield protocol.get_parameters(self.name)
        tensors, version = found
        self._saw(version)
        return tensors

    def push(
        self, tensors: Mapping[str, Tensor], version: int | Literal["*"] | None
    ) -> Exchange[int]:
        """See `RemoteSession.push`."""

        def build() -> Request[int]:
            replaced = self._expected() if version is None else version
            return protocol.put_parameters(self.name, tensors, replaced, self._key())

        new = yield from self._change(build)
        self._saw(new)
        return new

    def evaluate(self, inputs: Tensor, targets: Tensor) -> Exchange[EvaluateResult]:
        """See `RemoteSession.evaluate`."""
        result: EvaluateResult = yield protocol.evaluate(self.name, inputs, targets)
        self._saw(result.version)
        return result

    def curvature(
        self,
        inputs: Tensor,
        targets: Tensor,
        quantities: Sequence[str],
        mc_samples: int,
        bfloat16: Sequence[str],
        version: int | None,
    ) -> Exchange[CurvatureResult]:
        """See `RemoteSession.curvature`."""
        result: CurvatureResult = yield protocol.curvature(
            self.name, inputs, targets, quantities, mc_samples, bfloat16, version
        )
        self._saw(result.version)
        return result

    def step(
        self, inputs: Tensor, targets: Tensor, options: Mapping[str, float]
    ) -> Exchange[StepResult]:
        """See `RemoteSession.step`."""

        def build() -> Request[StepResult]:
            version = self._expected()
            return protocol.step(self.name, inputs, targets, options, version, self._key())

        return self._stepped((yield from self._change(build)))

    def step_ahead(
        self, inputs: Tensor, targets: Tensor, options: Mapping[str, float], version: int
    ) -> Request[StepResult]:
        """Return a step from a version that steps under way are still to make."""
        key = f"{self.run}:{version}:{self._failures}"
        return protocol.step(self.name, inputs, targets, options, version, key)

    def carry_out(self, request: Request[StepResult]) -> Exchange[StepResult]:
        """Send one of several steps under way, whose answers may come in any order."""
        result = yield from self._send(request)
        self._tell(result)
        if result.version > self.version:
            self._saw(result.version)
        return result

    def forward_backward(
        self, inputs: Tensor, targets: Tensor, *, accumulate: bool, reduction: Reduction
    ) -> Exchange[ForwardBackwardResult]:
        """See `RemoteSession.forward_backward`."""

        def build() -> Request[ForwardBackwardResult]:
            return protocol.forward_backward(
                self.name,
                inputs,
                targets,
                accumulate=accumulate,
                reduction=reduction,
                version=self._expected(),
                key=uuid.uuid4().hex,  # what is pending does not outlive its client
            )

        return (yield from self._change(build))

    def optim_step(
        self,
        options: Mapping[str, float],
        scales: Scales,
        groups: Sequence[Group] | None,
    ) -> Exchange[StepResult]:
        """See `RemoteSession.optim_step`."""

        def build() -> Request[StepResult]:
            return protocol.optim_step(
                self.name,
                options,
                scales,
                groups,
                pending=None,
                batches=self._own_batches(),
                version=self.version,  # what is pending belongs to one version, shared or not
                key=self._key(),
            )

        return self._stepped((yield from self._change(build)))

    def joined_step(
        self, inputs: Tensor, targets: Tensor, clients: int, options: Mapping[str, float]
    ) -> Exchange[StepResult]:
        """See `RemoteSession.joined_step`."""
        version = self.version
        half = self._key()  # the same when this client starts again: its part counts once

        def part() -> Request[ForwardBackwardResult]:
            return protocol.forward_backward(
                self.name,
                inputs,
                targets,
                accumulate=True,
                reduction="mean",
                version=version,
                key=f"{half}:part",
            )

        def whole() -> Request[StepResult]:
            request = protocol.optim_step(
                self.name,
                options,
                {},
                None,
                pending=clients,
                version=version,
                key=f"joined:{version}:{clients}",  # every client's: it is one step
            )
            purpose = f"{clients} clients' parts of a step of session {self.name!r}"
            return replace(request, not_yet=NothingPending, purpose=purpose)

        yield from self._change(part)
        return self._stepped((yield from self._change(whole)))

    def create_checkpoint(self, name: str, rule_state: bool) -> Exchange[CheckpointSpec]:
        """See `RemoteSession.checkpoint`."""
        made: CheckpointSpec = yield protocol.create_checkpoint(self.name, name, rule_state)
        return made

    def checkpoints(self) -> Exchange[list[CheckpointSpec]]:
        """See `RemoteSession.checkpoints`."""
        found: list[CheckpointSpec] = yield protocol.list_checkpoints(self.name)
        return found

    def read_checkpoint(self, name: str) -> Exchange[tuple[dict[str, Tensor], dict[str, str]]]:
        """See `RemoteSession.read_checkpoint`."""
        found: tuple[dict[str, Tensor], dict[str, str]] = yield protocol.get_checkpoint(
            self.name, name
        )
        return found

    def history(self, after: int) -> Exchange[list[Mapping[str, Any]]]:
        """See `RemoteSession.history`."""
        found: list[Mapping[str, Any]] = yield protocol.history(self.name, after)
        return found

    def settle(self) -> Exchange[Any]:
        """See `RemoteSession.settle`."""
        result: Any = None
        while self._unanswered:
            request = self._unanswered[0].request
            log.warning("%s: no answer came; asking again", request.purpose)
            try:
                result = yield from self._send(request)
            except ProblemError as error:
                if not _is_answer(error):
                    raise
                log.warning("%s: was refused: %s", request.purpose, error)
                result = None
                continue
            self._saw(result if isinstance(result, int) else result.version)
        return result

    def _own_batches(self) -> list[str]:
        """Return what this client has pending; another's is never stepped with."""
        if not self.batches:
            message = f"this client has no batch pending at version {self.version}"
            raise NothingPending(message)
        return self.batches

    def _change(self, build: Callable[[], Request[T]]) -> Exchange[T]:
        request = build()
        if self._unanswered:
            first = self._unanswered[0]
            if _digest(request) == first.digest:
                request = first.request
            else:
                yield from self.settle()
                request = build()
        return (yield from self._send(request))

    def _send(self, request: Request[T]) -> Exchange[T]:
        try:
            result: T = yield request
        except BaseException as error:
            if _is_answer(error):
                self._failures += 1
                self._forget(request)
            else:
                self._remember(request)
            raise
        self._forget(request)
        if isinstance(result, ForwardBackwardResult):
            self._saw(result.version)
            before = self.batches if result.pending == len(self.batches) + 1 else []
            self.batches = [*before, request.headers["Idempotency-Key"]]
        return result

    def _remember(self, request: Request[Any]) -> None:
        if all(kept.request is not request for kept in self._unanswered):
            self._unanswered.append(_Unanswered(_copied(request), _digest(request)))

    def _forget(self, request: Request[Any]) -> None:
        self._unanswered = [kept for kept in self._unanswered if kept.request is not request]

    def _stepped(self, result: StepResult) -> StepResult:
        self._saw(result.version)
        self._tell(result)
        return result

    def _tell(self, result: StepResult) -> None:
        for listener in self.listeners:
            listener(result)

    def _saw(self, version: int) -> None:
        if version != self.version:
            self.version, self.batches, self._failures = version, [], 0

    def _expected(self) -> Version:
        return "*" if self.shared else self.version

    def _key(self) -> str:
        """Return the key of the next change; a failed one may still hold its own."""
        if self.shared:
            return uuid.uuid4().hex
        return f"{self.run}:{self.version}:{self._failures}"


def _is_answer(error: BaseException) -> bool:
    """Tell whether an error says that the change was not made."""
    unknown = (InFlight, StorageFailed)  # of a failed commit only a retry tells what the disk holds
    return isinstance(error, ProblemError) and not isinstance(error, unknown)


def _copied(request: Request[T]) -> Request[T]:
    return replace(request, parts=[memoryview(bytes(part)) for part in request.parts])


def _digest(request: Request[Any]) -> bytes:
    """Return a digest of what a request asks for, whatever its key and version."""
    digest = hashlib.sha256(repr((request.method, request.path, request.query)).encode())
    for part in request.parts:
        digest.update(part)
    return digest.digest()
