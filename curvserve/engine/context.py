"""What is asked of a backward pass, kept per thread of execution.

The value lives in torch's own thread-local storage rather than in a ``ContextVar`` because
autograd copies that storage into the device threads that run hooks, which Python's is not.
"""

import ctypes
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

__all__ = [
    "Request",
    "State",
    "computing",
    "current",
    "disable",
    "enter",
    "holds",
    "is_tracing",
    "own_passes",
    "recording",
    "restore",
    "tracing",
]

_KEY = "curvserve.engine"


@dataclass(frozen=True)
class Request:
    """What one ``with backpack(...)`` block asks for.

    Attributes:
        quantities: The extensions, in the order given (which is the order of random draws).
        extension_hook: Called with each module once all extensions have run for it.
        debug: Whether to log what is computed where.
        served: One entry for each backward pass of extended losses inside the block.
    """

    quantities: tuple[Any, ...]
    extension_hook: Callable[[nn.Module], None] | None = None
    debug: bool = False
    served: list[Any] = field(default_factory=list)


@dataclass(frozen=True)
class State:
    """What holds in a thread now.

    Attributes:
        request: That of the innermost open block.
        recording: Whether forward passes are recorded.
        computing: Whether the engine itself sends something back through the graph.
        tracing: Whether a program is traced, see :mod:`.compiled`.
    """

    request: Request | None = None
    recording: bool = True
    computing: bool = False
    tracing: bool = False


def _state() -> State:
    if not torch._C._is_key_in_tls(_KEY):
        return State()
    state = torch._C._get_obj_in_tls(_KEY)
    assert isinstance(state, State)
    return state


def enter(request: Request) -> State:
    """Makes a request the current one, and returns what :func:`restore` takes."""
    before = _state()
    restore(replace(before, request=request))
    return before


def restore(state: State) -> None:
    """Sets the state of this thread."""
    if _steals():
        _keep(state)
    torch._C._stash_obj_in_tls(_KEY, state)


@cache
def _steals() -> bool:
    """Whether torch takes over the caller's reference to what it stores, as 2.11 does."""
    probe = object()
    before = sys.getrefcount(probe)
    torch._C._stash_obj_in_tls(f"{_KEY}.probe", probe)
    steals = sys.getrefcount(probe) == before
    if steals:
        _keep(probe)
    return steals


def _keep(stored: object) -> None:
    """Makes the reference that torch gives back when it stores something else, or forgets."""
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(stored))


def current() -> Request | None:
    """The request of the innermost open ``backpack`` block of this thread, if any."""
    return _state().request


def computing() -> bool:
    """Whether the backward pass that now runs is one of the engine's own."""
    return _state().computing


def recording() -> bool:
    """Whether forward passes of extended modules are recorded in this thread."""
    return _state().recording


def holds(condition: Tensor) -> bool:
    """Whether a condition on values holds.

    While a program is traced there are none to look at, and it is taken to hold: the program's own
    results show whether it did.
    """
    return _state().tracing or bool(condition)


def is_tracing() -> bool:
    """Whether a program is traced."""
    return _state().tracing


@contextmanager
def tracing() -> Iterator[None]:
    """A block in which a program is traced."""
    with _changed(replace(_state(), tracing=True)):
        yield


@contextmanager
def disable() -> Iterator[None]:
    """A block in which extended modules record nothing.

    Use it around forward passes with gradients enabled that no backward pass follows, to save the
    memory of the recorded layer inputs. The engine's own replays run inside it.
    """
    with _changed(replace(_state(), recording=False)):
        yield


@contextmanager
def own_passes() -> Iterator[None]:
    """A block whose backward passes are the engine's own: they set off nothing on their way."""
    with _changed(replace(_state(), computing=True)):
        yield


@contextmanager
def _changed(state: State) -> Iterator[None]:
    before = _state()
    restore(state)
    try:
        yield
    finally:
        restore(before)
