"""A session as a module, for trainers that want one."""

from typing import TYPE_CHECKING, Self

from torch import Tensor, nn

from .handles import RemoteParameter

if TYPE_CHECKING:
    from .session import RemoteSession


class RemoteModule(nn.Module):
    """Has a session's parameters and returns its losses: what a trainer takes for a model.

    Example:
        >>> model = session.module()
        >>> loss = model(inputs, targets)
    """

    def __init__(self, session: "RemoteSession") -> None:
        """Register the session's handles, under the names that the parameters have there.

        Args:
            session: whose parameters.
        """
        super().__init__()
        self.session = session
        self._is_copy = False
        for name, handle in session.handles.items():
            _register(self, name, handle)

    def forward(self, inputs: Tensor, targets: Tensor) -> Tensor:
        """Return the loss of a batch; see `RemoteSession.loss`.

        Args:
            inputs: samples first, as the model's specification says.
            targets: one per sample.

        Raises:
            RuntimeError: this is a copy of the module.
        """
        if self._is_copy:
            raise RuntimeError(
                "this is a copy of a remote module, and there is one set of weights on the server: "
                "averages and other copies need session.mirror(net) with a module of your own"
            )
        return self.session.loss(inputs, targets)

    def __deepcopy__(self, memo: dict[int, object]) -> Self:
        """Return a copy that has the same handles and no loss."""
        copy = type(self)(self.session)
        copy._is_copy = True
        return copy


def _register(module: nn.Module, name: str, handle: RemoteParameter) -> None:
    """Register a parameter under a dotted name."""
    *path, last = name.split(".")
    for part in path:
        if not isinstance(getattr(module, part, None), nn.Module):
            module.add_module(part, nn.Module())
        module = module.get_submodule(part)
    module.register_parameter(last, handle)
