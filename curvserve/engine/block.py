"""``with backpack(...)``: the block in which backward passes compute extensions."""

import warnings
from collections.abc import Callable
from types import TracebackType

from torch import nn

from curvserve.engine import context
from curvserve.engine.context import Request
from curvserve.engine.quantities import Quantity

__all__ = ["backpack"]


class backpack:
    """Makes backward passes of extended losses also compute the given extensions.

    Each extension leaves its result on every parameter, in the attribute that its ``savefield``
    names (``BatchGrad`` in ``p.grad_batch`` and so on). Results are overwritten by each backward
    pass, never accumulated. Blocks can be nested; the innermost one counts. A block belongs to
    the thread that opened it.

    Example:
        >>> from torch import nn, ones, tensor
        >>> from curvserve.engine import backpack, extend
        >>> from curvserve.engine.extensions import DiagGGNExact
        >>> model, loss = extend(nn.Linear(3, 2)), extend(nn.CrossEntropyLoss())
        >>> with backpack(DiagGGNExact()):
        ...     loss(model(ones(4, 3)), tensor([0, 1, 0, 1])).backward()
        >>> model.weight.diag_ggn_exact.shape
        torch.Size([2, 3])
    """

    def __init__(
        self,
        *extensions: Quantity,
        extension_hook: Callable[[nn.Module], None] | None = None,
        debug: bool = False,
        retain_graph: bool = False,
    ) -> None:
        """Checks the extensions; nothing is active before the block is entered.

        Args:
            extensions: Instances from ``curvserve.engine.extensions``.
            extension_hook: Called with each module that owns parameters, in backward order, after
                all extensions have run for it, and first of all with the loss module.
            debug: Log what is computed where (logger ``curvserve.engine``).
            retain_graph: Accepted for BackPACK's sake. The graph is kept or freed as the call
                ``loss.backward(retain_graph=...)`` says; nothing here needs it kept.

        Raises:
            ValueError: An extension is a class instead of an instance, is no extension at all, or
                two of them would write the same attribute.
        """
        for extension in extensions:
            _check_instance(extension)
        fields = [extension.savefield for extension in extensions]
        for name in fields:
            if fields.count(name) > 1:
                raise ValueError(
                    f"two extensions would both save to '{name}'; give each block only one of them"
                )
        self._request = Request(tuple(extensions), extension_hook, debug)

    def __enter__(self) -> "backpack":
        """Activates the extensions for this thread."""
        self._before = context.enter(self._request)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Restores the block around this one, and says so if nothing was computed in here."""
        context.restore(self._before)
        if self._request.served or not self._request.quantities:
            return
        hint = (
            "no extended loss ran backward inside this backpack(...) block, so no extension was "
            "computed: call extend(loss_function), and loss.backward() inside the block"
        )
        if error is not None:
            error.add_note(hint)
        else:
            warnings.warn(hint, stacklevel=2)


def _check_instance(extension: object) -> None:
    if isinstance(extension, type):
        raise ValueError(
            f"{extension.__name__} is a class: instantiate it, as in "
            f"backpack({extension.__name__}())"
        )
    if not isinstance(extension, Quantity):
        raise ValueError(
            f"{extension!r} is not an extension; see curvserve.engine.extensions for what there is"
        )
