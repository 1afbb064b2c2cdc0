"""Client of curvserve: train a model that lives on a remote host, with curvature.

Example:
    >>> session = connect("http://gpu-host:8000", model="mnist_cnn")
    >>> optimizer = RemoteDiagGGNOptimizer(session.parameters(), lr=0.05, damping=1.0)
    >>> for x, y in loader:
    ...     result = optimizer.step_on(x, y)
"""

from .async_client import AsyncClient, connect_async
from .async_session import AsyncRemoteSession
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
    PipelineBroken,
    ProblemError,
    ProtocolError,
    QuotaExceeded,
    SessionExists,
    StaleVersion,
    StorageFailed,
    Unauthorized,
    UnknownCheckpoint,
    UnknownModel,
    UnknownQuantity,
    UnknownSession,
    Unreachable,
    UnsupportedMediaType,
)
from .handles import RemoteGradient, RemoteParameter
from .mirror import AsyncMirror, Mirror
from .module import RemoteModule
from .optimizer import RemoteDiagGGNOptimizer, RemoteOptimizer
from .pipeline import Pipeline
from .protocol import Group
from .rules import KFAC, SGD, Adam, DiagGGN, Sophia
from .session import RemoteSession
from .types import (
    CheckpointSpec,
    CurvatureResult,
    EvaluateResult,
    ForwardBackwardResult,
    ModelSpec,
    ParameterSpec,
    SessionInfo,
    StepResult,
    TensorSpec,
)

__version__ = "0.1.0"

__all__ = [
    "Adam",
    "AsyncClient",
    "AsyncMirror",
    "AsyncRemoteSession",
    "BodyTooLarge",
    "CheckpointExists",
    "CheckpointSpec",
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
    "ForwardBackwardResult",
    "Group",
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
    "Pipeline",
    "PipelineBroken",
    "ProblemError",
    "ProtocolError",
    "QuotaExceeded",
    "RemoteDiagGGNOptimizer",
    "RemoteGradient",
    "RemoteModule",
    "RemoteOptimizer",
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
    "Unreachable",
    "UnsupportedMediaType",
    "connect",
    "connect_async",
]
