"""One request and its answer, as they are observed: what metrics and logs are made of."""

from dataclasses import dataclass, field
from time import perf_counter

from starlette.types import Scope

from ..phases import PHASES, Phases
from ..sessions import Account
from .route_table import Call


@dataclass
class Exchange:
    """A request and its answer.

    Attributes:
        method: the request's method.
        path: the request's path, as the caller wrote it.
        call: what it asks for.
        peer: the address that it came from.
        phases: where its time goes.
        started: when it began, on the clock of `perf_counter`.
        key: the name of the API key that it came with.
        account: what that key has under way; nobody's where there is no key.
        status: the answer's status; 0 where none was sent.
        problem: the code of the problem that was answered.
        received: bytes of its body.
        sent: bytes of the answer's body.
    """

    method: str
    path: str
    call: Call
    peer: str
    phases: Phases = field(default_factory=Phases)
    started: float = field(default_factory=perf_counter)
    key: str | None = None
    account: Account = field(default_factory=Account)
    status: int = 0
    problem: str | None = None
    received: int = 0
    sent: int = 0

    def elapsed(self) -> float:
        """Return the seconds since it began."""
        return perf_counter() - self.started

    def milliseconds(self) -> dict[str, float]:
        """Return the time of each phase it went through, in their order, and `total`."""
        taken = {name: self.phases.seconds[name] for name in PHASES if name in self.phases.seconds}
        return {name: 1000 * seconds for name, seconds in taken.items()} | {
            "total": 1000 * self.elapsed()
        }


def exchange_of(scope: Scope) -> Exchange:
    """Return the exchange that a request belongs to."""
    exchange = scope["state"]["exchange"]
    assert isinstance(exchange, Exchange)
    return exchange
