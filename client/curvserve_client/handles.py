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

    def __deepcopy__(self, memo: dict[int, object]) -> Self:
        """Return the handle itself: there is one parameter on the server."""
        return self

    def __reduce_ex__(self, protocol: object) -> tuple[Any, ...]:
        """Pickle the handle as what its session calls it."""
        return _handle, (self.session, self.remote_name, self.requires_grad)

    def __repr__(self) -> str:  # type: ignore[override]
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
        in_place = name.endswith("_") and not name.endswith("__") or name == "__setitem__"
        if in_place and name not in _SCALING:
            raise RuntimeError(
                f"{name} on a remote gradient: its elements are on the server, and what is here is "
                "their norm, which can be multiplied (clip_grad_norm_ and GradScaler do). For a "
                "bound on every coordinate give the optimizer clip=..., or train a module of your "
                "own with session.mirror(net)"
            )
        with torch._C.DisableTorchFunctionSubclass():
            return func(*args, **(kwargs or {}))


def _handle(session: Home, name: str, requires_grad: bool) -> RemoteParameter:
    handle = session.handles[name]
    handle.requires_grad_(requires_grad)
    return handle
