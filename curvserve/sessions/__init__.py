"""Training states: what a session is, who may change it, and who computes its work."""

from .collection import Sessions
from .executor import Executor, InlineExecutor
from .ledger import Ledger, Receipt
from .session import Change, Session
from .state import Expectation, SessionState, Tensors

__all__ = [
    "Change",
    "Executor",
    "Expectation",
    "InlineExecutor",
    "Ledger",
    "Receipt",
    "Session",
    "SessionState",
    "Sessions",
    "Tensors",
]
