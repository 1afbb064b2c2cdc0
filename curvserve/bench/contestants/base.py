"""What a contestant is."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from importlib.util import find_spec
from typing import ClassVar

from torch import Tensor

from ..case import QUANTITIES, Task

Value = Tensor | list[Tensor]
Found = Mapping[str, Mapping[str, Value]]
"""`grad` or a quantity's field -> parameter -> its value."""


class Contestant(ABC):
    """One way to the gradient and a quantity of a net and a batch.

    A new one is one file beside this, with the class named in `__init__`.

    Attributes:
        name: its column.
        package: what it needs, beside torch; None for nothing.
        quantities: what it computes.
        own: whether it is this project's.
        seeded: whether its draws are those of `SEED`, rather than those of torch's generator.
    """

    name: ClassVar[str]
    package: ClassVar[str | None] = None
    quantities: ClassVar[frozenset[str]] = frozenset(QUANTITIES)
    own: ClassVar[bool] = False
    seeded: ClassVar[bool] = False

    def __init__(self, task: Task) -> None:
        """Prepare whatever need not be done in each pass."""
        self.task = task

    @classmethod
    def installed(cls) -> bool:
        """Return whether its package is."""
        return cls.package is None or find_spec(cls.package) is not None

    @classmethod
    def refusal(cls, task: Task) -> str:
        """Return why it does not do a task; nothing where it does."""
        if not cls.installed():
            return f"{cls.package} is not installed"
        if task.quantity not in cls.quantities:
            return cls.lacks(task.quantity)
        return cls.cannot(task)

    @classmethod
    def lacks(cls, quantity: str) -> str:
        """Return the refusal of a quantity."""
        return f"it has no {quantity}"

    @classmethod
    def cannot(cls, task: Task) -> str:
        """Return what stands against the net or the loss in particular."""
        return ""

    @property
    def fields(self) -> tuple[str, ...]:
        """What a pass computes: the gradient too."""
        return ("grad", self.task.field)

    @abstractmethod
    def run(self) -> None:
        """Do one pass."""

    @abstractmethod
    def found(self) -> Found:
        """Return what the last pass computed."""

    @abstractmethod
    def drop(self) -> None:
        """Let go of what the last pass computed; not timed."""


class OnParameters(Contestant):
    """One that leaves its results on the parameters, as BackPACK does."""

    def __init__(self, task: Task) -> None:
        """Take the net as it is."""
        super().__init__(task)
        self.net, self.loss, self.inputs = task.net, task.loss, task.inputs

    def run(self) -> None:
        """Do one pass of gradients."""
        self.net.zero_grad()
        self.loss(self.net(self.inputs), self.task.targets).backward()

    def found(self) -> Found:
        """Return the fields of each parameter, where they are there."""
        trained = {name: p for name, p in self.net.named_parameters() if p.requires_grad}
        return {
            field: {name: getattr(p, field) for name, p in trained.items() if hasattr(p, field)}
            for field in self.fields
        }

    def drop(self) -> None:
        """Delete the fields."""
        for p in self.net.parameters():
            p.grad = None
            if hasattr(p, self.task.field):
                delattr(p, self.task.field)
