"""The layer kinds that have a rule of their own, and the one module that BackPACK adds to torch."""

from torch import nn
from torch.nn.utils import parametrize

from curvserve.engine.layers.base import LayerRule
from curvserve.engine.layers.batch_norm import BatchNorm
from curvserve.engine.layers.bilinear import Bilinear
from curvserve.engine.layers.conv import Conv
from curvserve.engine.layers.conv_transpose import ConvTranspose
from curvserve.engine.layers.embedding import Embedding
from curvserve.engine.layers.embedding_bag import EmbeddingBag
from curvserve.engine.layers.flatten import Flatten
from curvserve.engine.layers.group_norm import GroupNorm
from curvserve.engine.layers.instance_norm import InstanceNorm
from curvserve.engine.layers.layer_norm import LayerNorm
from curvserve.engine.layers.linear import Linear
from curvserve.engine.layers.prelu import PReLU
from curvserve.engine.layers.rms_norm import RMSNorm

__all__ = ["RULES", "Flatten", "LayerRule", "find", "register"]

RULES: dict[type[nn.Module], LayerRule] = {
    kind: rule
    for rule in (
        Linear(),
        Bilinear(),
        Conv(),
        ConvTranspose(),
        Embedding(),
        EmbeddingBag(),
        LayerNorm(),
        RMSNorm(),
        BatchNorm(),
        GroupNorm(),
        InstanceNorm(),
        PReLU(),
    )
    for kind in rule.kinds
}


def register(rule: LayerRule) -> None:
    """Adds a layer kind: the rule is used for its ``kinds`` from now on.

    Args:
        rule: The rule; a kind that has one already gets this one.
    """
    RULES.update(dict.fromkeys(rule.kinds, rule))


def find(module: nn.Module) -> LayerRule | None:
    """The rule for a module, or None where only the generic rule applies.

    A subclass has its parent's rule as long as it computes what the parent computes: neither the
    class nor the instance replaces ``forward``.
    """
    if "forward" in module.__dict__ or parametrize.is_parametrized(module):
        return None
    for kind in type(module).__mro__:
        if kind in RULES:
            same = type(module).forward is kind.forward
            return RULES[kind] if same and RULES[kind].covers(module) else None
    return None
