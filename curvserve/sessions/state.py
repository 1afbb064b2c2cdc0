"""A session's state: plain values that never change, so that a reader always sees one version."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace

from curvserve_client.rules import Rule, RuleState
from curvserve_client.types import draw_seed
from torch import Tensor

Tensors = Mapping[str, Tensor]


@dataclass(frozen=True)
class SessionState:
    """One version of a training state; a step makes the next one and leaves this as it is.

    Attributes:
        model: name of the model.
        seed: what the initial parameters and every version's draws come from.
        rule: how quantities become a step.
        parameters: parameter name -> tensor on the executor's device, never written to.
        buffers: buffer name -> tensor, likewise.
        rule_state: what the rule remembers, likewise.
        version: grows by one at every change of the parameters.
        steps: how many of these changes were steps.
        digest: of the tensors and numbers, where whoever holds them has told it.
    """

    model: str
    seed: int
    rule: Rule
    parameters: Tensors
    buffers: Tensors
    rule_state: RuleState = field(default_factory=RuleState)
    version: int = 0
    steps: int = 0
    digest: str = ""

    @property
    def is_elsewhere(self) -> bool:
        """Whether the tensors here tell dtypes and shapes only."""
        return any(tensor.is_meta for tensor in self.parameters.values())

    def outline(self) -> "SessionState":
        """Return the same state with tensors that tell dtypes and shapes only."""
        return self.of(lambda tensors: {name: t.to("meta") for name, t in tensors.items()})

    def draw_seed(self, part: int = 0) -> int:
        """Seed of the Monte-Carlo draws made at this version, for one of a step's batches."""
        return draw_seed(self.seed, self.version, part)

    def reordered(self, parameters: Iterable[str], buffers: Iterable[str]) -> "SessionState":
        """Return the same state with its tensors in the order of these names."""
        return replace(
            self,
            parameters={name: self.parameters[name] for name in parameters},
            buffers={name: self.buffers[name] for name in buffers},
        )

    def of(self, change: Callable[[Tensors], Tensors]) -> "SessionState":
        """Return the same state with each group of tensors put elsewhere."""
        slots = {slot: change(tensors) for slot, tensors in self.rule_state.tensors.items()}
        return replace(
            self,
            parameters=change(self.parameters),
            buffers=change(self.buffers),
            rule_state=RuleState(self.rule_state.scalars, slots),
        )

    def remembering(self, slots: Mapping[str, Tensors]) -> "SessionState":
        """Return the same state with other tensors of its rule."""
        return replace(self, rule_state=RuleState(self.rule_state.scalars, slots))

    def stepped(
        self, parameters: Tensors, buffers: Tensors, rule_state: RuleState
    ) -> "SessionState":
        """Return the state after a step."""
        return replace(
            self,
            parameters=parameters,
            buffers=buffers,
            rule_state=rule_state,
            version=self.version + 1,
            steps=self.steps + 1,
        )

    def loaded(self, parameters: Tensors) -> "SessionState":
        """Return the state after its parameters were replaced from outside."""
        return replace(self, parameters=parameters, version=self.version + 1)
