"""What stands for a remote parameter in a local optimizer."""

from typing import TYPE_CHECKING, Self

import torch

from .types import ParameterSpec

if TYPE_CHECKING:
    from .session import RemoteSession


class RemoteParameter(torch.nn.Parameter):
    """A 0-dim stand-in for a parameter that lives on the server.

    It is a real parameter, so optimizers and schedulers take it; its own value means nothing.

    Attributes:
        session: the session that holds the parameter.
        remote_name: the parameter's name there.
        spec: its shape and dtype there.
    """

    session: "RemoteSession"
    remote_name: str
    spec: ParameterSpec

    def __new__(cls, session: "RemoteSession", remote_name: str, spec: ParameterSpec) -> Self:
        """Make the handle; nothing is fetched.

        Args:
            session: the session that holds the parameter.
            remote_name: the parameter's name there.
            spec: its shape and dtype there.
        """
        handle = super().__new__(cls, torch.zeros(()))
        handle.session, handle.remote_name, handle.spec = session, remote_name, spec
        return handle

    def __repr__(self) -> str:  # type: ignore[override]
        """Say which parameter of which session it is."""
        return (
            f"RemoteParameter({self.remote_name!r}, shape={self.spec.shape}, "
            f"session={self.session.name!r})"
        )
