"""Training states: what a session is, who may change it, who computes and who keeps it."""

from .account import Account
from .attendance import Caller, CallerGone, Request
from .collection import Sessions
from .durability import Durability
from .events import Event, Events
from .executor import Executor, InlineExecutor
from .machine import Expectation, Kind, Machine, Receipt, Ticket
from .pending import Reduction
from .session import Session
from .state import SessionState, Tensors

__all__ = [
    "Account",
    "Caller",
    "CallerGone",
    "Durability",
    "Event",
    "Events",
    "Executor",
    "Expectation",
    "InlineExecutor",
    "Kind",
    "Machine",
    "Receipt",
    "Reduction",
    "Request",
    "Session",
    "SessionState",
    "Sessions",
    "Tensors",
    "Ticket",
]
