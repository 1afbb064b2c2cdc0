"""The curvature engine: gradients per sample and curvature of any PyTorch model.

Made for scripts written for BackPACK: ``extend`` the model and the loss, open ``with
backpack(DiagGGNMC()):`` and call ``loss.backward()``. Or call :func:`evaluate`, which needs no
hooks. It stands on torch alone.
"""

from curvserve.engine.block import backpack
from curvserve.engine.compiled import Evaluator
from curvserve.engine.context import disable
from curvserve.engine.evaluate import (
    Evaluation,
    Part,
    evaluate,
    evaluate_part,
    merge_parts,
    part_loss,
)
from curvserve.engine.extend import extend
from curvserve.engine.kernels import reproducible
from curvserve.engine.memory_format import channels_last

__all__ = [
    "Evaluation",
    "Evaluator",
    "Part",
    "backpack",
    "channels_last",
    "disable",
    "evaluate",
    "evaluate_part",
    "extend",
    "merge_parts",
    "part_loss",
    "reproducible",
]
