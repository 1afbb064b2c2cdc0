"""Workers that keep each a slice of what a rule reads and remembers, and all of the parameters.

Of every tensor a worker has the `span` of its elements that its rank gives. Rules that step each
coordinate apart (`Rule.elementwise`) need nothing else.
"""

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from curvserve_client.errors import InvalidRule
from curvserve_client.rules import Quantities, RuleGroup, Update
from torch import Tensor

from .finite import check_finite
from .state import SessionState, Tensors
from .team import Team, sliced


@dataclass(frozen=True)
class Slices:
    """One worker's.

    Attributes:
        team: those who have the others.
    """

    team: Team

    def of(self, tensors: Tensors) -> dict[str, Tensor]:
        """Return the slice of each tensor, one-dimensional."""
        return sliced(tensors, self.team.rank, self.team.workers)

    def check(self, groups: Sequence[RuleGroup]) -> None:
        """Refuse a step that slices are not enough for.

        Raises:
            InvalidRule: a rule reads coordinates of other slices.
        """
        if not all(group.rule.elementwise for group in groups):
            message = "with these options the rule reads all coordinates, and each worker has a"
            expected = "options that step each coordinate apart, or no --shard-state"
            raise InvalidRule(f"{message} slice of them", expected=expected)

    def adopted(self, state: SessionState) -> SessionState:
        """Return a whole state as this worker keeps it."""
        slots = {slot: self.of(tensors) for slot, tensors in state.rule_state.tensors.items()}
        return state.remembering(slots)

    def differentiated(
        self, what: Hashable, part: Callable[[], tuple[Any, Quantities]] | None
    ) -> tuple[Any, dict[str, dict[str, Any]]]:
        """Return what all parts give together, of quantities the slices.

        Args:
            what: names what is computed.
            part: computes this worker's; None where it has no samples.
        """
        shared, slices = self.team.scattered(what, part)
        return shared, {quantity: dict(tensors) for quantity, tensors in slices.items()}

    def updated(
        self,
        parameters: Tensors,
        quantities: Quantities,
        groups: Sequence[RuleGroup],
        update: Callable[[Tensors], Update],
    ) -> Update:
        """Return the parameters after a step, and this worker's slices of the rule's state.

        Args:
            parameters: whole.
            quantities: slices.
            groups: the rules.
            update: takes the step of slices of the parameters.

        Raises:
            NonFinite: a quantity, a parameter or what is remembered is not finite.
            PeerFailed: one of another worker's is not.
        """
        made: list[Update] = []

        def part() -> Tensors:
            _check(quantities)
            made.append(update(self.of(parameters)))
            return made[0].parameters

        whole = self.team.gathered(parameters, part)
        own = made[0]
        return Update(whole, own.state, self._means(own.metrics, groups, quantities["grad"]))

    def norms(self, quantities: Quantities) -> dict[str, float]:
        """Return the Euclidean norm of each gradient, having checked everything.

        Raises:
            NonFinite: something is not finite.
            PeerFailed: another worker's slice is not.
        """

        def part() -> dict[str, Tensor]:
            _check(quantities)
            return {name: g.double().square().sum() for name, g in quantities["grad"].items()}

        names = tuple(quantities["grad"])
        squares = self.team.total(("norms", names), part)
        return {name: square.sqrt().item() for name, square in squares.items()}

    def _means(
        self,
        metrics: Mapping[str, float | Tensor],
        groups: Sequence[RuleGroup],
        slices: Tensors,
    ) -> dict[str, Tensor]:
        """Return the means of a rule's metrics over the coordinates of each of its groups."""
        if not metrics:
            return {}
        counts = [
            sum(slices[name].numel() for name in group.parameters if name in slices)
            for group in groups
        ]

        def part() -> dict[str, Tensor]:
            weights = {name: counts[int(name.partition("#")[2] or 0)] for name in metrics}
            return {
                name: torch.tensor(
                    [float(metrics[name]) * weight if weight else 0.0, weight], dtype=torch.float64
                )
                for name, weight in weights.items()
            }

        sums = self.team.total(("metrics", tuple(metrics)), part)
        return {name: total / weight for name, (total, weight) in sums.items()}


def _check(quantities: Quantities) -> None:
    for quantity, tensors in quantities.items():
        check_finite({f"{quantity}.{name}": tensor for name, tensor in tensors.items()})
