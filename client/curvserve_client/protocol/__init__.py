"""The calls of the HTTP contract: what each sends, and what its answer becomes.

Each function returns a `Request`; a transport sends it, and `Request.read` turns whatever the
server says into a record or into a typed error.
"""

from .checkpoints import create_checkpoint, get_checkpoint, list_checkpoints
from .common import Version
from .compute import curvature, evaluate, step
from .halves import Group, Reduction, forward_backward, optim_step
from .history import history
from .models import get_model, list_models
from .parameters import get_parameters, put_parameters
from .sessions import create_session, delete_session, get_session, list_sessions

__all__ = [
    "Group",
    "Reduction",
    "Version",
    "create_checkpoint",
    "create_session",
    "curvature",
    "delete_session",
    "evaluate",
    "forward_backward",
    "get_checkpoint",
    "get_model",
    "get_parameters",
    "get_session",
    "history",
    "list_checkpoints",
    "list_models",
    "list_sessions",
    "optim_step",
    "put_parameters",
    "step",
]
