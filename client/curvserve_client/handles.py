"""What stands for a remote parameter, and for its gradient, in a local optimizer."""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Self, Union

import torch
from torch import Tensor

from .types import ParameterSpec

if TYPE_CHECKING:
    from .async_session import AsyncRemoteSession
    from .session import RemoteSession

Home = Union["RemoteSession", "AsyncRemoteSession"]

_KEEPING = {"detach_", "requires_grad_", "share_memory_"}

_MULTIPLES = {"mul", "div", "clone", "to"}

_SCALING = {
    "mul_",
    "div_",
    "zero_",
    "copy_",
    "detach_",
    "requires_grad_",
    "_foreach_mul_",
    "_foreach_div_",
    "_foreach_zero_",
    "_amp_foreach_non_finite_check_and_unscale_",
}


class RemoteParameter(torch.nn.Parameter):
    """A 0-dim stand-in for a parameter that lives on the server.

    It is a real parameter, so optimizers, schedulers and trainers take it. Its own value means
    nothing, and is not a number. After `session.loss(x, y).backward()` its `grad` is the norm of
    the remote gradient; whatever multiplies that multiplies the remote one in the step.

    Attributes:
        session: the session that holds the parameter.
        remote_name: the parameter's name there.
        spec: its shape and dtype there.
    """

    session: Home
    remote_name: str
    spec: ParameterSpec

    def __new__(cls, session: Home, remote_name: str, spec: ParameterSpec) -> Self:
        """Make the handle; nothing is fetched. `session.parameters()` has one of each.

        Args:
            session: the session that holds the parameter.
            remote_name: the parameter's name there.
            spec: its shape and dtype there.
        """
        handle = super().__new__(cls, torch.tensor(math.nan, dtype=torch.float64))
        handle.session, handle.remote_name, handle.spec = session, remote_name, spec
        return handle

    @classmethod
    def __torch_function__(
        cls,
        func: Any,
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Refuse what would write values into the handle: nothing on the server would change."""
        name = getattr(func, "__name__", "")
        if _writes(name) and name not in _KEEPING and _changed(args):
            raise RuntimeError(
                f"{name} on a remote parameter: its values are on the server. session.pull() and "
                "session.push(...) read and replace them; weight decay is an option of the rule; "
                "averages of weights and edits between steps need session.mirror(net) with a "
                "module of your own"
            )
        with torch._C.DisableTorchFunctionSubclass():
            return func(*args, **(kwargs or {}))

    def __deepcopy__(self, memo: dict[int, object]) -> Self:
        """Return the handle itself: there is one parameter on the server."""
        return self

    def __reduce_ex__(self, protocol: object) -> tuple[Any, ...]:
        """Pickle the handle as what its session calls it."""
        return _handle, (self.session, self.remote_name, self.requires_grad)

    def __repr__(self) -> str:  # type: ignore[override]  # torch's takes the contents to print
        """Say which parameter of which session it is."""
        return (
            f"RemoteParameter({self.remote_name!r}, shape={self.spec.shape}, "
            f"session={self.session.name!r})"
        )


class RemoteGradient(Tensor):
    """The norm of a gradient that lives on the server: it can be multiplied, and nothing else."""

    @classmethod
    def of(cls, norm: float) -> "RemoteGradient":
        """Return the gradient of a norm."""
        return torch.tensor(norm, dtype=torch.float64).as_subclass(cls)

    @classmethod
    def __torch_function__(
        cls,
        func: Any,
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Refuse what changes the gradient in another way than by a factor."""
        name = getattr(func, "__name__", "")
        if _writes(name) and name not in _SCALING:
            raise RuntimeError(
                f"{name} on a remote gradient: its elements are on the server, and what is here is "
                "their norm, which can be multiplied (clip_grad_norm_ and GradScaler do). For a "
                "bound on every coordinate give the optimizer clip=..., or train a module of your "
                "own with session.mirror(net)"
            )
        with torch._C.DisableTorchFunctionSubclass():
            result = func(*args, **(kwargs or {}))
            return result.as_subclass(cls) if _is_one(result, name, args) else result


def _writes(name: str) -> bool:
    return (name.endswith("_") and not name.endswith("__")) or name == "__setitem__"


def _changed(args: Sequence[Any]) -> bool:
    """Tell whether a function that writes into its first argument would change a handle.

    The stand-in of another handle may be copied into one, as `load_state_dict` does.
    """
    first, source = (*args, None, None)[:2]
    targets = first if isinstance(first, list | tuple) else [first]
    from_a_stand_in = isinstance(source, Tensor) and source.dim() == 0 and bool(source.isnan())
    return not from_a_stand_in and any(isinstance(each, RemoteParameter) for each in targets)


def _is_one(result: Any, name: str, args: Sequence[Any]) -> bool:
    """Tell whether a result is a remote gradient too: a multiple of one, or in its memory."""
    if not isinstance(result, Tensor) or isinstance(result, RemoteGradient) or not args:
        return False
    if name in _MULTIPLES:
        return True
    gradient = args[0]
    return isinstance(gradient, RemoteGradient) and result.data_ptr() == gradient.data_ptr()


def _handle(session: Home, name: str, requires_grad: bool) -> RemoteParameter:
    handle = session.handles[name]
    handle.requires_grad_(requires_grad)
    return handle
