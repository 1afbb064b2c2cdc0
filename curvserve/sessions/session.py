"""One session: its current state, its one writer, and its ledger of what was done."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from curvserve_client.errors import UnknownSession
from curvserve_client.rules import override_rule
from curvserve_client.types import CurvatureResult, EvaluateResult, ParameterSpec, SessionInfo

from ..models import Model
from .executor import Executor
from .ledger import Ledger, Receipt
from .state import Expectation, SessionState, Tensors

BatchReader = Callable[[], Awaitable[Tensors]]
"""Reads and checks what a caller sent; called only where the request is to be carried out."""


@dataclass(frozen=True)
class Change:
    """What every request that changes a session says of itself.

    Attributes:
        key: its idempotency key.
        fingerprint: a digest of the whole request.
        expectation: the versions that it may be applied to.
    """

    key: str
    fingerprint: bytes
    expectation: Expectation


class Session:
    """One live training state of a model.

    Readers see the state that is current when they ask, and need not wait for a step. Changes come
    one after another: compute out of place, check, swap, acknowledge; what fails changes nothing.

    Attributes:
        name: what clients call it.
        model: the recipe of its model.
        state: the current version.
    """

    def __init__(self, name: str, model: Model, state: SessionState, executor: Executor) -> None:
        """Begin at a state.

        Args:
            name: what clients call it.
            model: the recipe of its model.
            state: the first version.
            executor: who computes.
        """
        self.name = name
        self.model = model
        self.state = state
        self._executor = executor
        self._ledger = Ledger()
        self._writer = asyncio.Lock()
        self._closed = False
        self._created = datetime.now(UTC).isoformat(timespec="seconds")

    def describe(self) -> SessionInfo:
        """Return the session as it is told to clients."""
        state = self.state
        return SessionInfo(
            name=self.name,
            model=state.model,
            version=state.version,
            seed=state.seed,
            rule=state.rule.name,
            steps=state.steps,
            parameters={name: ParameterSpec.of(p) for name, p in state.parameters.items()},
            created=self._created,
        )

    async def parameters(self, state: SessionState) -> Tensors:
        """Return a version's parameters in host memory."""
        return await self._executor.to_host(state.parameters)

    async def evaluate(self, batch: Tensors) -> EvaluateResult:
        """Return loss and metrics of a batch at the current version."""
        return await self._executor.evaluate(self.state, batch)

    async def curvature(
        self, batch: Tensors, quantities: Sequence[str], mc_samples: int, expected: Expectation
    ) -> CurvatureResult:
        """Return quantities of a batch at the current version, if that is the expected one.

        Raises:
            StaleVersion: the current version is another.
        """
        state = self.state
        expected.check(state.version)
        return await self._executor.curvature(state, batch, quantities, mc_samples)

    async def step(
        self, change: Change, batch: BatchReader, options: Mapping[str, float]
    ) -> Receipt:
        """Take one step, exactly once.

        Args:
            change: the request's key, fingerprint and expected versions.
            batch: gives the batch.
            options: options of the session's rule to replace for this step.

        Raises:
            KeyReused: see `Ledger.begin`.
            InFlight: likewise.
            StaleVersion: the current version is none of the expected ones.
            InvalidRule: an option is unknown or out of range.
            ProblemError: whatever `curvserve.sessions.jobs.step` refuses.
        """

        async def compute(state: SessionState) -> tuple[SessionState, dict[str, Any]]:
            rule = override_rule(state.rule, options)
            after, result = await self._executor.step(state, await batch(), rule)
            return after, result.to_dict()

        return await self._apply(change, compute)

    async def load(self, change: Change, tensors: BatchReader) -> Receipt:
        """Replace the parameters, exactly once.

        Args:
            change: the request's key, fingerprint and expected versions.
            tensors: gives the new parameters.

        Raises:
            ProblemError: as `step`, and whatever `curvserve.sessions.jobs.load` refuses.
        """

        async def compute(state: SessionState) -> tuple[SessionState, dict[str, Any]]:
            after = await self._executor.load(state, await tensors())
            return after, {"version": after.version}

        return await self._apply(change, compute)

    async def close(self) -> None:
        """Let the change under way end, then refuse every other."""
        async with self._writer:
            self._closed = True

    async def _apply(
        self,
        change: Change,
        compute: Callable[[SessionState], Awaitable[tuple[SessionState, dict[str, Any]]]],
    ) -> Receipt:
        done = self._ledger.begin(change.key, change.fingerprint)
        if done is not None:
            return done
        try:
            async with self._writer:
                self._check_open()
                change.expectation.check(self.state.version)
                self.state, answer = await compute(self.state)
        except BaseException:
            self._ledger.forget(change.key)
            raise
        receipt = Receipt(self.state.version, answer)
        self._ledger.finish(change.key, receipt)
        return receipt

    def _check_open(self) -> None:
        if self._closed:
            raise UnknownSession(f"the session {self.name!r} was deleted")
