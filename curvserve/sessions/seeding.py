"""Random numbers from a seed, for building a model and for the passes through it."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode


@contextmanager
def seeded(seed: int, devices: Sequence[torch.device]) -> Iterator[None]:
    """Seed torch's global generators inside the block, and leave them after it as they were.

    Args:
        seed: the seed.
        devices: whose generators.
    """
    # `torch.manual_seed` takes a millisecond to note, for each kind of device that it does not
    # find, where it was called
    generators = [_generator(device) for device in devices]
    before = [generator.get_state() for generator in generators]
    for generator in generators:
        generator.manual_seed(seed)
    try:
        yield
    finally:
        for generator, state in zip(generators, before, strict=True):
            generator.set_state(state)


def _generator(device: torch.device) -> torch.Generator:
    if device.type != "cuda":
        return torch.default_generator
    torch.cuda.init()
    return torch.cuda.default_generators[device.index or 0]


class OwnGenerator(TorchDispatchMode):
    """Has everything that this thread draws on the CPU come from a generator of its own.

    The numbers are those that follow `torch.manual_seed(seed)`, and the global generator, which a
    computation in another thread may be using, is left alone: so a model can be built while a step
    computes.

    Example:
        >>> with OwnGenerator(0):
        ...     layer = torch.nn.Linear(2, 3)
    """

    def __init__(self, seed: int) -> None:
        """Seed the generator."""
        super().__init__()  # type: ignore[no-untyped-call]  # torch's own has no types
        self._generator = torch.Generator().manual_seed(seed)

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Nothing here is compiled; True would load the compiler, a second of every start."""
        return False

    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Give the generator to an operation that draws and was given none."""
        given = dict(kwargs or {})
        if torch.Tag.nondeterministic_seeded in func.tags and not given.get("generator"):
            func, given["generator"] = _taking_a_generator(func), self._generator
        return func(*args, **given)


def _taking_a_generator(operation: Any) -> Any:
    """The overload of an operation that has the argument `generator`."""
    if any(argument.name == "generator" for argument in operation._schema.arguments):
        return operation
    name = operation._overloadname
    overload = "generator" if name == "default" else f"{name}_generator"
    return getattr(operation.overloadpacket, overload)
