"""The records that travel: specifications, sessions and results, the same at both ends.

Each is a frozen dataclass with `to_dict` (plain JSON values) and `from_dict`, which ignores members
it does not know, so that a newer server can say more, and raises `ProtocolError` where one is
missing or of the wrong kind. `CurvatureResult` holds tensors, so it has `to_wire` and `from_wire`.
"""

from .draws import draw_seed
from .results import (
    CurvatureResult,
    EvaluateResult,
    ForwardBackwardResult,
    StepResult,
)
from .specifications import (
    CheckpointSpec,
    ModelSpec,
    ParameterSpec,
    SessionInfo,
    TensorSpec,
    dtype_name,
)

__all__ = [
    "CheckpointSpec",
    "CurvatureResult",
    "EvaluateResult",
    "ForwardBackwardResult",
    "ModelSpec",
    "ParameterSpec",
    "SessionInfo",
    "StepResult",
    "TensorSpec",
    "draw_seed",
    "dtype_name",
]
