"""A small training problem in float64 numpy, and a rule's steps on it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from curvserve_client.rules import Rule, RuleState, Update
from torch import Tensor

SHAPES: dict[str, tuple[int, ...]] = {"weight": (3, 4), "bias": (5,)}
SIZE = 17
Vector = np.ndarray[Any, np.dtype[np.float64]]


@dataclass(frozen=True)
class Problem:
    """A loss of 17 coordinates that is no quadratic, and curvatures that are its noisy bounds."""

    seed: int = 0
    slopes: Vector = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "slopes", self.draws("slopes").uniform(0.1, 3, SIZE))

    def draws(self, *what: object) -> np.random.Generator:
        return np.random.default_rng([self.seed, *map(ord, repr(what))])

    def begin(self) -> Vector:
        return self.draws("begin").normal(0, 2, SIZE)

    def loss(self, p: Vector) -> float:
        return float(np.sum(0.5 * self.slopes * p**2 + 0.1 * np.cos(3 * p)))

    def gradient(self, p: Vector) -> Vector:
        return self.slopes * p - 0.3 * np.sin(3 * p)

    def curvature(self, step: int) -> Vector:
        h = self.draws("curvature", step).exponential(self.slopes)
        return np.where(h < 0.05, 0.0, h)

    def factors(self, step: int) -> dict[str, list[Vector]]:
        """Kronecker factors of ranks below their sizes, as those of small batches are."""
        draws = self.draws("factors", step)
        roots = {"weight": [draws.normal(size=(3, 2)), draws.normal(size=(4, 2))]}
        roots["bias"] = [draws.normal(size=(5, 2))]
        return {name: [root @ root.T for root in both] for name, both in roots.items()}


def tensors(flat: Vector, dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
    parts = np.split(flat, [12])
    return {
        name: torch.tensor(part, dtype=dtype).reshape(shape)
        for (name, shape), part in zip(SHAPES.items(), parts, strict=True)
    }


def vector(parameters: Mapping[str, Tensor]) -> Vector:
    parts = [parameters[name].double().numpy().ravel() for name in SHAPES]
    return np.concatenate(parts)


@dataclass
class Run:
    """A rule's steps on a problem, in a dtype; each step gets what the rule asks for alone."""

    problem: Problem
    dtype: torch.dtype = torch.float64
    parameters: Mapping[str, Tensor] = field(init=False)
    state: RuleState = field(init=False)
    count: int = 0

    def begin(self, rule: Rule) -> "Run":
        self.parameters = tensors(self.problem.begin(), self.dtype)
        self.state = rule.start(self.parameters)
        return self

    def quantities(self, rule: Rule) -> dict[str, dict[str, Any]]:
        problem, step = self.problem, self.count
        make: dict[str, Callable[[], dict[str, Any]]] = {
            "grad": lambda: tensors(problem.gradient(vector(self.parameters)), self.dtype),
            "diag_ggn_mc": lambda: tensors(problem.curvature(step), self.dtype),
            "kfac": lambda: {
                name: [torch.tensor(factor, dtype=self.dtype) for factor in both]
                for name, both in problem.factors(step).items()
            },
        }
        return {name: make[name]() for name in rule.quantities(self.state)}

    def step(self, rule: Rule) -> Update:
        update = rule.update(
            self.parameters,
            self.quantities(rule),
            self.state,
            loss=self.problem.loss(vector(self.parameters)),
            loss_at=lambda parameters: self.problem.loss(vector(parameters)),
        )
        self.parameters, self.state = update.parameters, update.state
        self.count += 1
        return update

    def steps(self, rule: Rule, count: int) -> list[Vector]:
        """Take steps and return the parameters after each."""
        self.begin(rule)
        return [vector(self.step(rule).parameters) for _ in range(count)]
