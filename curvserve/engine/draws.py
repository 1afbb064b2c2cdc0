"""Where the random numbers of the Monte-Carlo factors come from."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.distributions import Binomial, Categorical, Distribution, Normal

__all__ = ["GivenDraws", "GlobalDraws", "Numbers", "SeededDraws", "random_signs"]


def random_signs(like: Sequence[Tensor], generator: torch.Generator | None = None) -> list[Tensor]:
    """Tensors of +1 and -1, of shapes, types and devices like those given.

    Args:
        like: The tensors.
        generator: A generator on the CPU; torch's global one by default.
    """
    return [(2 * torch.randint(2, t.shape, generator=generator) - 1).to(t.detach()) for t in like]


class GlobalDraws:
    """Draws from torch's global generator, number for number as BackPACK does."""

    def classes(self, probabilities: Tensor, count: int) -> Tensor:
        """See :class:`curvserve.engine.losses.Draws`."""
        drawn: Tensor = Categorical(probs=probabilities, validate_args=False).sample((count,))
        return drawn

    def normal(self, mean: Tensor, deviation: float, count: int) -> Tensor:
        """See :class:`curvserve.engine.losses.Draws`."""
        scale = torch.full_like(mean, deviation)
        drawn: Tensor = Normal(mean, scale, validate_args=False).sample((count,))
        return drawn

    def binary(self, probabilities: Tensor, count: int) -> Tensor:
        """See :class:`curvserve.engine.losses.Draws`."""
        drawn: Tensor = Binomial(probs=probabilities, validate_args=False).sample((count,))
        return drawn

    def signs(self, columns: int, like: Tensor, count: int) -> Tensor:
        """See :class:`curvserve.engine.losses.Draws`."""
        bits = torch.randint(2, (count, columns, *like.shape), device=like.device)
        return (2 * bits - 1).to(like.dtype)

    def targets(
        self, distribution: Callable[[Tensor], Distribution], outputs: Tensor, count: int
    ) -> Tensor:
        """See :class:`curvserve.engine.losses.Draws`."""
        drawn: Tensor = distribution(outputs).sample((count,))
        return drawn


Numbers = tuple[str, tuple[int, ...]]
"""What is drawn, ``rand``, ``randn`` or ``bits``, and of which shape."""


@dataclass
class SeededDraws:
    """Draws for the whole batch from a generator of its own, and hands out one part's share.

    The n-th sample's numbers depend on the seed, its index and the size of the whole batch only:
    neither on how the batch is cut into parts nor on the device or the thread. Each method call
    continues the generator, so the parts of a batch each need a fresh instance.

    Attributes:
        seed: Seeds the generator, which lives on the CPU.
        total: The number of lines (first axis of the output) of the whole batch.
        offset: The first line of this part.
        taken: What was drawn so far.
    """

    seed: int
    total: int
    offset: int = 0
    taken: list[Numbers] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Makes the generator."""
        self._generator = self.generator()

    def generator(self) -> torch.Generator:
        """A generator that begins anew, the same for all parts of a batch."""
        return torch.Generator().manual_seed(self.seed)

    def numbers(self, kind: str, shape: tuple[int, ...]) -> Tensor:
        """The next raw numbers: uniform or normal in float64, or bits."""
        self.taken.append((kind, shape))
        if kind == "bits":
            return torch.randint(2, shape, generator=self._generator)
        draw = torch.rand if kind == "rand" else torch.randn
        return draw(shape, generator=self._generator, dtype=torch.float64)

    def classes(self, probabilities: Tensor, count: int) -> Tensor:
        """See :class:`curvserve.engine.losses.Draws`; by inversion of the cumulative sum."""
        uniform = self.numbers("rand", (count, self.total, *probabilities.shape[1:-1]))
        cumulative = probabilities.cumsum(-1, dtype=torch.float64)
        level = self._part(uniform, probabilities).unsqueeze(-1) * cumulative[..., -1:]
        # The first class whose cumulative probability exceeds the level; never an impossible one.
        return (cumulative <= level).sum(-1).clamp_(max=probabilities.shape[-1] - 1)

    def normal(self, mean: Tensor, deviation: float, count: int) -> Tensor:
        """See :class:`curvserve.engine.losses.Draws`."""
        noise = self.numbers("randn", (count, self.total, *mean.shape[1:]))
        return mean + deviation * self._part(noise, mean).to(mean.dtype)

    def binary(self, probabilities: Tensor, count: int) -> Tensor:
        """See :class:`curvserve.engine.losses.Draws`; one where a uniform number is below."""
        uniform = self.numbers("rand", (count, self.total, *probabilities.shape[1:]))
        return (self._part(uniform, probabilities) < probabilities).to(probabilities.dtype)

    def signs(self, columns: int, like: Tensor, count: int) -> Tensor:
        """See :class:`curvserve.engine.losses.Draws`."""
        bits = self.numbers("bits", (count, self.total, columns, *like.shape[1:]))
        return (2 * self._part(bits, like) - 1).to(like.dtype).movedim(2, 1)

    def targets(
        self, distribution: Callable[[Tensor], Distribution], outputs: Tensor, count: int
    ) -> Tensor:
        """See :class:`curvserve.engine.losses.Draws`.

        Distributions take no generator, so torch's own is seeded anew for every line, and put
        back afterwards.
        """
        seeds = torch.randint(2**62, (self.total,), generator=self._generator).tolist()
        drawn = []
        with torch.random.fork_rng():
            for line, seed in zip(
                outputs.split(1), seeds[self.offset : self.offset + len(outputs)], strict=True
            ):
                torch.manual_seed(seed)
                drawn.append(distribution(line).sample((count,)))
        return torch.cat(drawn, 1)

    def _part(self, numbers: Tensor, like: Tensor) -> Tensor:
        return numbers[:, self.offset : self.offset + len(like)].to(like.device)


class GivenDraws(SeededDraws):
    """Hands out numbers that were drawn before, in the order in which they are asked for."""

    def __init__(self, total: int, given: Sequence[Tensor], offset: int = 0) -> None:
        """Takes the numbers.

        Args:
            total: The number of lines of the batch.
            given: What :meth:`SeededDraws.numbers` is to return, call by call.
            offset: As for :class:`SeededDraws`.
        """
        self.total, self.offset, self._given = total, offset, iter(given)

    def numbers(self, kind: str, shape: tuple[int, ...]) -> Tensor:
        """See the base class."""
        return next(self._given)

    def generator(self) -> torch.Generator:
        """Refuses: nothing is drawn here."""
        raise NotImplementedError("draws from a generator cannot be given")

    def targets(
        self, distribution: Callable[[Tensor], Distribution], outputs: Tensor, count: int
    ) -> Tensor:
        """Refuses: a distribution draws from torch's own generator, seeded line by line."""
        raise NotImplementedError("the draws of a distribution cannot be given")
