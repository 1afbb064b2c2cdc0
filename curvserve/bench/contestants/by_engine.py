"""This engine."""

from ... import engine
from ...engine import extensions
from ..case import SEED, Task
from .base import Contestant, Found, OnParameters


class Hooks(OnParameters):
    """`extend` and `backpack`, as a script written for BackPACK uses it."""

    name = "hooks"
    own = True

    def __init__(self, task: Task) -> None:
        """Extend the net and the loss."""
        super().__init__(task)
        engine.extend(self.net)
        engine.extend(self.loss)

    def run(self) -> None:
        """Do one pass."""
        extension = getattr(extensions, self.task.quantity)(**self.task.options)
        with engine.backpack(extension):
            super().run()


class Evaluate(Contestant):
    """One call, without hooks left behind."""

    name = "evaluate"
    own = True

    def run(self) -> None:
        """Do one pass."""
        task = self.task
        wanted = getattr(extensions, task.quantity)(**task.options)
        self._result: engine.Evaluation | None = engine.evaluate(
            task.net, task.loss, task.inputs, task.targets, ["grad", wanted]
        )

    def found(self) -> Found:
        """Return what the call returned."""
        assert self._result is not None
        return self._result.quantities

    def drop(self) -> None:
        """Forget it."""
        self._result = None


class Compiled(Evaluate):
    """The same by a program for the shape of the batch, as a server computes."""

    name = "compiled"
    seeded = True

    def __init__(self, task: Task) -> None:
        """Make the program; it is held against an eager pass then."""
        super().__init__(task)
        self._evaluator = engine.Evaluator(task.net, task.loss, eager_calls=1)
        for _ in range(3):
            self.run()

    def run(self) -> None:
        """Do one pass."""
        task = self.task
        wanted = getattr(extensions, task.quantity)(**task.options)
        with engine.reproducible():
            self._result = self._evaluator(task.inputs, task.targets, ["grad", wanted], seed=SEED)
