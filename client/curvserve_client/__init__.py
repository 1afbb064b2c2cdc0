"""Client of curvserve: train a model that lives on a remote host, with curvature.

Example:
    >>> session = connect("http://gpu-host:8000", model="mnist_cnn")
    >>> optimizer = RemoteDiagGGNOptimizer(session.parameters(), lr=0.05, damping=1.0)
    >>> for x, y in loader:
    ...     result = optimizer.step_on(x, y)
"""

from .client import Client, connect
from .errors import (
    BodyTooLarge,
    CheckpointExists,
    ConnectionFailed,
    CurvserveError,
    DeadlineExceeded,
    DeadlinePassed,
    Draining,
    Forbidden,
    InFlight,
    InternalError,
    InvalidBatch,
    InvalidRequest,
    InvalidRule,
    KeyReused,
    LengthRequired,
    MalformedBody,
    MethodNotAllowed,
    MissingIdempotencyKey,
    MissingVersion,
    NonFinite,
    NotFound,
    NothingPending,
    OutOfMemory,
    Overloaded,
    ParameterMismatch,
    ProblemError,
    ProtocolError,
    SessionExists,
    StaleVersion,
    StorageFailed,
    Unauthorized,
    UnknownCheckpoint,
    UnknownModel,
    UnknownQuantity,
    UnknownSession,
    UnsupportedMediaType,
)
from .handles import RemoteParameter
from .mirror import Mirror
from .optimizer import RemoteDiagGGNOptimizer
from .rules import KFAC, SGD, Adam, DiagGGN, Sophia
from .session import RemoteSession
from .types import (
    CurvatureResult,
    EvaluateResult,
    ModelSpec,
    ParameterSpec,
    SessionInfo,
    StepResult,
    TensorSpec,
)

__version__ = "0.1.0"

__all__ = [
    "Adam",
    "BodyTooLarge",
    "CheckpointExists",
    "Client",
    "ConnectionFailed",
    "CurvatureResult",
    "CurvserveError",
    "DeadlineExceeded",
    "DeadlinePassed",
    "DiagGGN",
    "Draining",
    "EvaluateResult",
    "Forbidden",
    "InFlight",
    "InternalError",
    "InvalidBatch",
    "InvalidRequest",
    "InvalidRule",
    "KFAC",
    "KeyReused",
    "LengthRequired",
    "MalformedBody",
    "MethodNotAllowed",
    "Mirror",
    "MissingIdempotencyKey",
    "MissingVersion",
    "ModelSpec",
    "NonFinite",
    "NotFound",
    "NothingPending",
    "OutOfMemory",
    "Overloaded",
    "ParameterMismatch",
    "ParameterSpec",
    "ProblemError",
    "ProtocolError",
    "RemoteDiagGGNOptimizer",
    "RemoteParameter",
    "RemoteSession",
    "SGD",
    "SessionExists",
    "SessionInfo",
    "Sophia",
    "StaleVersion",
    "StepResult",
    "StorageFailed",
    "TensorSpec",
    "Unauthorized",
    "UnknownCheckpoint",
    "UnknownModel",
    "UnknownQuantity",
    "UnknownSession",
    "UnsupportedMediaType",
    "connect",
]
