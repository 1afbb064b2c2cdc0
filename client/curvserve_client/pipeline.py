"""Steps that are sent before the answer to the one before is here."""

import threading
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from types import TracebackType
from typing import TYPE_CHECKING, Self

from torch import Tensor

from .errors import PipelineBroken, StaleVersion
from .messages import Request
from .types import StepResult

if TYPE_CHECKING:
    from .session import RemoteSession


@dataclass
class _Step:
    """One step under way.

    Attributes:
        request: what is sent.
        version: the version that it starts from.
        before: the step before it.
        sent: set once its body has been sent, or will not be.
        future: its result.
    """

    request: Request[StepResult]
    version: int
    before: "_Step | None"
    sent: threading.Event = field(default_factory=threading.Event)
    future: Future[StepResult] = field(default_factory=Future)


class Pipeline:
    """Sends steps in order, so that a batch travels while the one before is being computed.

    A step names the version that the one before will make, so the server takes them in order or
    not at all. When one fails, the ones behind it are not made: their futures raise
    `PipelineBroken`, and so does `step` until `drain` has been called.

    Example:
        >>> with session.pipeline(window=2) as pipeline:
        ...     futures = [pipeline.step(x, y, lr=0.05) for x, y in loader]
        >>> losses = [future.result().loss for future in futures]
    """

    def __init__(self, session: "RemoteSession", window: int) -> None:
        """Begin with nothing under way.

        Args:
            session: whose steps; nothing else may change it meanwhile.
            window: how many steps may be under way.

        Raises:
            ValueError: the window is less than 1, or the session is shared.
        """
        if window < 1:
            raise ValueError(f"window is {window}; expected at least 1")
        if session.core.shared:
            raise ValueError("the next version of a shared session is not known before it is made")
        self._session = session
        self._window = threading.Semaphore(window)
        self._threads = ThreadPoolExecutor(window, thread_name_prefix="curvserve-pipeline")
        self._last: _Step | None = None
        self._next = session.version

    def step(self, inputs: Tensor, targets: Tensor, **options: float) -> Future[StepResult]:
        """Send a step; wait only where the window is full.

        Args:
            inputs: samples first; not to be written to before the result is here.
            targets: one per sample.
            options: options of the session's rule, for this step.

        Raises:
            PipelineBroken: a step before this one has failed.
        """
        self._window.acquire()
        before = self._last
        if before is not None and before.future.done() and before.future.exception() is not None:
            self._window.release()
            failure = before.future.exception()
            raise _broken(failure) from failure
        request = self._session.core.step_ahead(inputs, targets, options, self._next)
        step = _Step(request, self._next, before)
        step.request = replace(request, sent=step.sent.set)
        self._last, self._next = step, self._next + 1
        self._threads.submit(self._carry_out, step)
        return step.future

    def drain(self) -> None:
        """Wait for every step; after a failure the next one starts from the version there is."""
        if self._last is not None:
            failed = self._last.future.exception() is not None  # waits
            self._last = None
            if failed:
                self._session.settle()
                self._session.info()
        self._next = self._session.version

    def close(self) -> None:
        """Wait for every step, and end."""
        self._threads.shutdown(wait=True)
        self.drain()

    def __enter__(self) -> Self:
        """Return the pipeline itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Wait for every step."""
        self.close()

    def _carry_out(self, step: _Step) -> None:
        if step.before is not None:
            step.before.sent.wait()
        try:
            result = self._result(step)
        except BaseException as error:
            step.future.set_exception(error)
        else:
            step.future.set_result(result)
        finally:
            step.before = None  # or every step would keep all before it
            step.sent.set()
            self._window.release()

    def _result(self, step: _Step) -> StepResult:
        try:
            return self._session.send_ahead(step.request)
        except StaleVersion:  # it overtook the one before it, or that one was not made
            if step.before is None:
                raise
            failure = step.before.future.exception()
            if failure is not None:
                raise _broken(failure) from failure
            if step.before.future.result().version != step.version:
                raise
            return self._session.send_ahead(step.request)


def _broken(failure: BaseException | None) -> PipelineBroken:
    return PipelineBroken(f"a step before this one was not made: {failure}")
